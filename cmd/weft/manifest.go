//go:build !node

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/manifest"
)

// manifestFlags hold the flags of weft manifest.
type manifestFlags struct {
	valuesFiles, settings          []string
	netConf                        string
	namespace, kubeVersion, output string
}

func newManifestCommand() *cobra.Command {
	var f manifestFlags
	c := &cobra.Command{
		Use:   "manifest [install|uninstall|kustomize|chart]",
		Short: "Print what Kubernetes is given to install weft, or to remove it",
		Long: "Install, the default, is kube-flannel.yml: for a new cluster, or over a running flannel. Uninstall removes\n" +
			"from the nodes what is left when the former is deleted. Kustomize and chart write a folder.\n" +
			"Values have the names that the Helm chart gives them.",
		Example: "  weft manifest --set podCidr=10.1.0.0/16 --set flannel.backend=host-gw | kubectl apply -f -\n" +
			"  kubectl -n kube-flannel get configmap kube-flannel-cfg -o 'jsonpath={.data.net-conf\\.json}' |\n" +
			"    weft manifest --net-conf - | kubectl apply -f -",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"install", "uninstall", "kustomize", "chart"},
		RunE: func(c *cobra.Command, args []string) error {
			what := "install"
			if len(args) == 1 {
				what = args[0]
			}
			return f.run(c, what)
		},
	}
	c.Flags().StringArrayVarP(&f.valuesFiles, "values", "f", nil, "file with values, as for helm (repeatable)")
	c.Flags().StringArrayVar(&f.settings, "set", nil, "one value, such as podCidr=10.1.0.0/16 (repeatable)")
	c.Flags().StringVar(&f.netConf, "net-conf", "", "net-conf.json to take as it is; - reads standard input")
	c.Flags().StringVarP(&f.namespace, "namespace", "n", manifest.Namespace, "namespace")
	c.Flags().StringVar(&f.kubeVersion, "kube-version", manifest.KubeVersion, "version of the API server; what it does not know is left out")
	c.Flags().StringVarP(&f.output, "output", "o", "", "write to this file, or folder, instead of standard output")
	return c
}

func (f manifestFlags) run(c *cobra.Command, what string) error {
	opts, err := f.options(c.InOrStdin())
	if err != nil {
		return err
	}
	switch what {
	case "install":
		return f.write(c.OutOrStdout(), manifest.Install, opts)
	case "uninstall":
		return f.write(c.OutOrStdout(), manifest.Uninstall, opts)
	case "kustomize":
		files, err := manifest.Kustomize(opts)
		return errors.Join(err, f.writeFiles(files))
	default:
		files, err := manifest.Chart()
		return errors.Join(err, f.writeFiles(files))
	}
}

// options reads the values: later files over earlier ones, single settings over files.
func (f manifestFlags) options(stdin io.Reader) (manifest.Options, error) {
	opts := manifest.Options{Namespace: f.namespace, KubeVersion: f.kubeVersion, Values: manifest.Values{}}
	for _, name := range f.valuesFiles {
		raw, err := readConfig(stdin, name)
		if err != nil {
			return opts, fmt.Errorf("--values: %w", err)
		}
		v, err := manifest.ParseValues(raw)
		if err != nil {
			return opts, fmt.Errorf("--values: %s: %w", name, err)
		}
		opts.Values = opts.Values.With(v)
	}
	for _, s := range f.settings {
		if err := opts.Values.Set(s); err != nil {
			return opts, fmt.Errorf("--set: %w", err)
		}
	}
	if f.netConf != "" {
		raw, err := readConfig(stdin, f.netConf)
		if err != nil {
			return opts, fmt.Errorf("--net-conf: %w", err)
		}
		opts.Values["netConf"] = string(raw)
	}
	return opts, nil
}

func (f manifestFlags) write(stdout io.Writer, render func(manifest.Options) ([]byte, error), opts manifest.Options) error {
	text, err := render(opts)
	if err != nil {
		return err
	}
	if f.output == "" {
		_, err := stdout.Write(text)
		return err
	}
	return os.WriteFile(f.output, text, 0o644)
}

func (f manifestFlags) writeFiles(files []manifest.File) error {
	if f.output == "" {
		return errors.New("--output: name a folder to write to")
	}
	for _, file := range files {
		path := filepath.Join(f.output, filepath.FromSlash(file.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, file.Content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
