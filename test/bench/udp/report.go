package main

import (
	"fmt"
	"slices"
)

// report prints a table of best and median, and the ratios that matter.
func report(networks []*network) {
	fmt.Print("| best / median |")
	for _, n := range networks {
		fmt.Printf(" %s |", n.name)
	}
	fmt.Print("\n| --- |")
	for range networks {
		fmt.Print(" --- |")
	}
	fmt.Println()
	for _, f := range figures {
		fmt.Printf("| %s, %s |", f.name, f.unit)
		for _, n := range networks {
			best, median := summary(n.results[f.name], f.less)
			fmt.Printf(" %s / %s |", short(best), short(median))
		}
		fmt.Println()
	}
	fmt.Println()
	for _, other := range networks[1:] {
		ours, oursMedian := summary(networks[0].results["TCP stream"], false)
		theirs, theirsMedian := summary(other.results["TCP stream"], false)
		fmt.Printf("TCP stream, %s to %s: best %.2f, median %.2f\n", networks[0].name, other.name, ours/theirs, oursMedian/theirsMedian)
	}
}

func summary(values []float64, less bool) (best, median float64) {
	vs := slices.Sorted(slices.Values(values))
	if len(vs) == 0 {
		return 0, 0
	}
	best = vs[len(vs)-1]
	if less {
		best = vs[0]
	}
	return best, vs[len(vs)/2]
}

// short prints three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
