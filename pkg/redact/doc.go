// Package redact takes secrets out of what people are shown: requests in logs, CRI
// answers, configuration and log files in an archive for a bug report.
//
// Nouns: Hidden is what stands in a secret's place. Message knows protobuf messages
// of the CRI, JSON any document, Text files of unknown format.
//
// What counts as secret: what the CRI marks so; values of environment variables;
// values of annotations, which may carry cloud-init data, but those that the caller
// keeps; all words of a command but its first; values whose names say so (password,
// token, user-data …); in texts also private keys, users and passwords in URLs,
// authorization headers and JSON web tokens.
//
// Concurrency: all functions may be called concurrently; Message changes its
// argument.
//
// Traps: a secret in free text under an innocent name cannot be recognised.
package redact
