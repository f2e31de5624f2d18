package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// A parser collects what is wrong, so that one look shows everything.
type parser struct {
	store    Store
	problems Problems
	warnings Warnings
}

func (p *parser) problem(field, format string, args ...any) {
	p.problems = append(p.problems, Problem{field, fmt.Sprintf(format, args...)})
}

func (p *parser) warn(field, format string, args ...any) {
	p.warnings = append(p.warnings, Problem{field, fmt.Sprintf(format, args...)})
}

// A member is one key of a JSON object and its value.
type member struct {
	key   string
	value json.RawMessage
}

// members returns the members of a valid JSON object in order, duplicates included.
func members(raw []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var ms []member
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: key.(string)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// object decodes ms into the struct that into points to, one member at a time, which leaves the rules to
// encoding/json (case is ignored, the last duplicate counts, null changes nothing) and still finds every
// problem. It returns the keys that the struct does not have.
func (p *parser) object(path string, ms []member, into any) (unknown []string) {
	names := fieldNames(into)
	seen := map[string]bool{}
	for _, m := range ms {
		name, ok := match(m.key, names)
		if !ok {
			unknown = append(unknown, m.key)
			continue
		}
		if seen[name] {
			p.warn(path+name, "given more than once: the last one counts")
		}
		seen[name] = true
		if err := decodeMember(m, into); err != nil {
			p.problem(path+name, "%s", describe(err))
		}
	}
	return unknown
}

func decodeMember(m member, into any) error {
	one, err := json.Marshal(map[string]json.RawMessage{m.key: m.value})
	if err != nil {
		return err
	}
	return json.Unmarshal(one, into)
}

// describe says what was wanted where a value has the wrong type. It repeats nothing of the value but
// numbers: a text may be a key.
func describe(err error) string {
	var e *json.UnmarshalTypeError
	if !errors.As(err, &e) {
		return err.Error()
	}
	want := map[reflect.Kind]string{
		reflect.Bool:   "true or false",
		reflect.Int:    "a whole number",
		reflect.Uint:   "a whole number, not negative",
		reflect.String: "a text in quotes",
	}[e.Type.Kind()]
	return fmt.Sprintf("must be %s, not %s", want, e.Value)
}

// clip keeps a value that is quoted in a message readable.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "..."
	}
	return s
}

// fieldNames returns the keys of the struct that v is or points to.
func fieldNames(v any) []string {
	t := reflect.TypeOf(v)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var names []string
	for f := range t.Fields() {
		names = append(names, f.Name)
	}
	return names
}

// match finds the name that encoding/json takes key for.
func match(key string, names []string) (string, bool) {
	for _, n := range names {
		if strings.EqualFold(key, n) {
			return n, true
		}
	}
	return "", false
}

// near finds the name that key was probably meant to be.
func near(key string, names []string) (string, bool) {
	k := squeeze(key)
	best, least := "", 1000
	for _, n := range names {
		s := squeeze(n)
		d, allowed := distance(k, s), min(1+len(s)/6, 3)
		if d > allowed && min(len(k), len(s)) > 4 && (strings.HasPrefix(k, s) || strings.HasPrefix(s, k)) {
			d = allowed
		}
		if d <= allowed && d < least {
			best, least = n, d
		}
	}
	return best, best != ""
}

func squeeze(key string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(strings.ToLower(key))
}

// distance is the number of letters to insert, delete or replace to turn a into b (Levenshtein). A key of
// absurd length is far from everything.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
