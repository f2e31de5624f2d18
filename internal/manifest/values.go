package manifest

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Values are a chart's values as Helm has them: maps, lists, strings, booleans, float64s.
type Values map[string]any

// ParseValues reads a values file.
func ParseValues(text []byte) (Values, error) {
	v := Values{}
	if err := yaml.Unmarshal(text, &v); err != nil {
		return nil, err
	}
	return v, nil
}

// Set adds one setting as `helm --set` has it: names joined by dots, and a value in YAML.
func (v Values) Set(setting string) error {
	name, text, ok := strings.Cut(setting, "=")
	keys := strings.Split(name, ".")
	if !ok || !regexp.MustCompile(`^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$`).MatchString(name) {
		return fmt.Errorf("%q is not of the form podCidr=10.1.0.0/16 or flannel.backend=host-gw", setting)
	}
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m := map[string]any(v)
	for _, key := range keys[:len(keys)-1] {
		next, ok := m[key].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[key] = next
		}
		m = next
	}
	m[keys[len(keys)-1]] = value
	return nil
}

// With returns v with other's values over it: maps are merged, null removes, anything else replaces.
func (v Values) With(other Values) Values { return merge(v, other) }

func merge(base, over map[string]any) map[string]any {
	out := maps.Clone(base)
	for key, value := range over {
		from, isMap := value.(map[string]any)
		to, wasMap := out[key].(map[string]any)
		switch {
		case value == nil:
			delete(out, key)
		case isMap && wasMap:
			out[key] = merge(to, from)
		default:
			out[key] = value
		}
	}
	return out
}
