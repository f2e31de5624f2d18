package secret

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestNothingShowsTheText(t *testing.T) {
	const text = "s3cr3t"
	s := New(text)
	if s.Reveal() != text || s != New(text) || s == New("other") {
		t.Error("the text got lost")
	}
	var shown strings.Builder
	slog.New(slog.NewTextHandler(&shown, nil)).Info("x", "s", s, "in", struct{ S Text }{s})
	slog.New(slog.NewJSONHandler(&shown, nil)).Info("x", "s", s, "in", struct{ S Text }{s})
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%t"} {
		fmt.Fprintf(&shown, verb, s)
		fmt.Fprintf(&shown, verb, struct{ S Text }{s})
		fmt.Fprintf(&shown, verb, &s)
	}
	raw, err := json.Marshal(map[string]any{"s": s, "in": struct{ S Text }{s}})
	if err != nil {
		t.Fatal(err)
	}
	shown.Write(raw)
	if strings.Contains(shown.String(), text) || strings.Contains(shown.String(), fmt.Sprintf("%x", text)) {
		t.Errorf("shown: %s", shown.String())
	}
	if !strings.Contains(shown.String(), Hidden) {
		t.Error("nothing says that there is one")
	}
	if none := (Text{}); none.String() != "" {
		t.Errorf("none shows as %q", none)
	}
}
