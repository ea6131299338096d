// Package metadata keeps vmruntime's intent: the records of sandboxes and
// containers, in one bolt database. What actually runs is libvirt's to say.
//
// The database's layout, compared with the code by a test:
//
//	meta
//	├── version     format of everything below, decimal; see Version
//	sandboxes
//	└── <id>        Sandbox, JSON
//	containers
//	└── <id>        Container, JSON
//
// A change of a record's meaning raises Version; a new optional field does not.
// A database of a newer version is refused, never rewritten.
//
// A record has an immutable part, fixed when it is created, and a mutable part
// which changes only through Table.Update. Every method is one transaction, safe
// for concurrent use, and on disk when it returns.
//
// A record that cannot be decoded makes List fail as a whole: what is not in a
// list is taken for gone by those who clean up, so a partial list is worse than
// none.
package metadata
