package manifest

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// functions are those of Helm's that the chart uses. test/chart compares the result with Helm's own.
func functions() template.FuncMap {
	return template.FuncMap{
		"append":        func(list []any, v any) []any { return append(list[:len(list):len(list)], v) },
		"default":       func(def, v any) any { return pick(def, v) },
		"dict":          dict,
		"int":           integer,
		"list":          func(v ...any) []any { return v },
		"nindent":       nindent,
		"quote":         func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
		"semverCompare": semverCompare,
		"set":           func(m map[string]any, key string, v any) map[string]any { m[key] = v; return m },
		"toPrettyJson":  toPrettyJSON,
		"toYaml":        toYAML,
		"trim":          strings.TrimSpace,
	}
}

// pick returns v unless it is empty as templates see it.
func pick(def, v any) any {
	if truth, ok := template.IsTrue(v); ok && truth {
		return v
	}
	return def
}

func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict: key %v is not a string", pairs[i])
		}
		m[key] = pairs[i+1]
	}
	return m, nil
}

// integer is strict where Helm turns what is no number into 0.
func integer(v any) (int, error) {
	switch v := v.(type) {
	case int:
		return v, nil
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<31 {
			return int(v), nil
		}
	case string:
		return strconv.Atoi(v)
	}
	return 0, fmt.Errorf("%v is not an integer", v)
}

func nindent(n int, text string) string {
	pad := "\n" + strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(text, "\n", pad)
}

// semverCompare knows one form of constraint, ">=1.30-0", which includes pre-releases and vendors' builds.
func semverCompare(constraint, version string) (bool, error) {
	number := regexp.MustCompile(`^(?:>=|v)?(\d{1,9})\.(\d{1,9})`)
	c, v := number.FindStringSubmatch(constraint), number.FindStringSubmatch(version)
	if c == nil || !strings.HasPrefix(constraint, ">=") {
		return false, fmt.Errorf("constraint %q is not of the form >=1.30-0", constraint)
	}
	if v == nil {
		return false, fmt.Errorf("version %q is not of the form v1.30.0", version)
	}
	for i := 1; i <= 2; i++ {
		a, _ := strconv.Atoi(v[i]) // nine digits at most
		b, _ := strconv.Atoi(c[i])
		if a != b {
			return a > b, nil
		}
	}
	return true, nil
}

func toPrettyJSON(v any) (string, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	return string(raw), err
}

func toYAML(v any) (string, error) {
	raw, err := yaml.Marshal(v)
	return strings.TrimSuffix(string(raw), "\n"), err
}
