// Package secret holds texts that must not be shown: passwords and keys.
package secret

import (
	"fmt"
	"io"
	"log/slog"
)

// A Text is a text that no log, error, JSON or dump shows. It is comparable. The zero Text is none.
type Text struct{ text string }

// Hidden is what is shown in place of a Text.
const Hidden = "(hidden)"

// New returns a Text.
func New(text string) Text { return Text{text} }

// Reveal returns the text.
func (t Text) Reveal() string { return t.text }

// String tells an empty Text from one that is set, nothing else.
func (t Text) String() string {
	if t.text == "" {
		return ""
	}
	return Hidden
}

// Format implements fmt.Formatter, so that no verb (%#v, %d, ...) reaches the text.
func (t Text) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue implements slog.LogValuer.
func (t Text) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText implements encoding.TextMarshaler, and with it hides the text from JSON.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
