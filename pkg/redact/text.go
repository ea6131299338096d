package redact

import (
	"regexp"
)

// secretWords are in the names of values that are secret.
const secretWords = `passw|passphrase|secret|token|credential|private.?key|api.?key|fd.?key|user.?data`

var secretName = regexp.MustCompile(`(?i)` + secretWords + `|^auth$|^authorization$`)

// replacement is a pattern and what takes the place of its matches.
type replacement struct {
	pattern *regexp.Regexp
	with    string
}

// replacements are applied in this order.
var replacements = []replacement{
	{regexp.MustCompile(`(?s)-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), Hidden},
	{regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@"']+@`), "${1}" + Hidden + "@"},
	{regexp.MustCompile(`(?i)(authorization["']?\s*[:=]\s*["']?)(?:(?:basic|bearer|negotiate|digest)\s+)?[^\s"']+`), "${1}" + Hidden},
	{regexp.MustCompile(`(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}`), "${1}" + Hidden},
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Hidden},
	// name=value, name: value, "name": "value", name='a value'; also as a YAML block.
	{regexp.MustCompile(`(?i)([a-z0-9_.-]*(?:` + secretWords + `)[a-z0-9_.-]*["']?[ \t]*[:=][ \t]*)("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[|>][+-]?[ \t]*\n(?:[ \t]+[^\n]*\n?|[ \t]*\n)+|[^\s,;}"']+)`), "${1}" + Hidden},
}

// Text removes what looks like a secret from a text of any format.
func Text(text string) string {
	for _, r := range replacements {
		text = r.pattern.ReplaceAllString(text, r.with)
	}
	return text
}
