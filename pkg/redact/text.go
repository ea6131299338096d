package redact

import (
	"regexp"
	"slices"
	"strings"
)

// secretWords are in the names of values that are secret.
const secretWords = `passw|passphrase|secret|token|credential|private.?key|api.?key|fd.?key|user.?data`

var secretName = regexp.MustCompile(`(?i)` + secretWords + `|^auth$|^authorization$`)

// privateKey is the one secret that has many lines wherever it is.
var privateKey = replacement{
	[]string{"private key-----"},
	regexp.MustCompile(`(?s)-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), Hidden,
}

// replacement is a pattern and what takes the place of its matches.
type replacement struct {
	marks   []string // one of which is in all that matches, in lower case: far quicker to look for
	pattern *regexp.Regexp
	with    string
}

func (r replacement) apply(text string) string {
	lower := strings.ToLower(text)
	if !slices.ContainsFunc(r.marks, func(mark string) bool { return strings.Contains(lower, mark) }) {
		return text
	}
	return r.pattern.ReplaceAllString(text, r.with)
}

// replacements are applied to each line, in this order.
var replacements = []replacement{
	{[]string{"://"}, regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@"']+@`), "${1}" + Hidden + "@"},
	{[]string{"authorization"}, regexp.MustCompile(`(?i)(authorization["']?\s*[:=]\s*["']?)(?:(?:basic|bearer|negotiate|digest)\s+)?[^\s"']+`), "${1}" + Hidden},
	{[]string{"bearer"}, regexp.MustCompile(`(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}`), "${1}" + Hidden},
	{[]string{"eyj"}, regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), Hidden},
	// name=value, name: value, "name": "value", name='a value'; also a YAML
	// block, which nextLine keeps together.
	{
		[]string{"passw", "passphrase", "secret", "token", "credential", "key", "data"},
		regexp.MustCompile(`(?i)((?:` + secretWords + `)[a-z0-9_.-]*["']?[ \t]*[:=][ \t]*)("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[|>][+-]?[0-9]?[ \t]*\n(?:[ \t]+[^\n]*\n?|[ \t]*\n)+|[^\s,;}"']+)`), "${1}" + Hidden,
	},
}

// blockStart ends a line of YAML whose value is the indented lines after it.
var blockStart = regexp.MustCompile(`:[ \t]*[|>][+-]?[0-9]?[+-]?[ \t]*\r?\n$`)

// Text removes what looks like a secret from a text of any format.
func Text(text string) string {
	text = privateKey.apply(text)
	var clean strings.Builder
	clean.Grow(len(text))
	for text != "" {
		var part string
		part, text = nextLine(text)
		for _, r := range replacements {
			part = r.apply(part)
		}
		clean.WriteString(part)
	}
	return clean.String()
}

// nextLine splits off a line, together with the block that it begins.
func nextLine(text string) (line, rest string) {
	end := lineLength(text)
	if !strings.ContainsAny(text[:end], "|>") || !blockStart.MatchString(text[:end]) {
		return text[:end], text[end:]
	}
	for end < len(text) && strings.ContainsRune(" \t\r\n", rune(text[end])) {
		end += lineLength(text[end:])
	}
	return text[:end], text[end:]
}

// lineLength counts the end of the line, too.
func lineLength(text string) int {
	if i := strings.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
}
