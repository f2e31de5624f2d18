package netconf

import "strings"

// A Problem names one field of the configuration, as it is spelled in the manual, and what would be right.
type Problem struct {
	Field   string `json:"field"` // Backend.Port; empty for the text as a whole
	Message string `json:"message"`
}

func (p Problem) String() string {
	if p.Field == "" {
		return p.Message
	}
	return p.Field + ": " + p.Message
}

// Problems is every reason why a configuration is refused. As an error it is one line.
type Problems []Problem

func (ps Problems) Error() string {
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return strings.Join(texts, "; ")
}

// Warnings is what is taken as it stands and is perhaps not what was meant.
type Warnings []Problem
