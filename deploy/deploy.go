// Package deploy holds what is installed from: the chart, from which `weft manifest` and the manifests beside
// it are rendered.
package deploy

import "embed"

// Chart is the Helm chart, in the folder chart.
//
//go:embed all:chart
var Chart embed.FS
