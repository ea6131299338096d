package streaming

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
)

// takeover lets a handler take a connection over and tells when its client has gone.
type takeover struct {
	http.ResponseWriter
	gone func()
}

// Unwrap is how net/http finds the writer's other abilities.
func (t *takeover) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// Flush sends what is buffered.
func (t *takeover) Flush() { _ = http.NewResponseController(t.ResponseWriter).Flush() }

// Hijack hands the connection over.
func (t *takeover) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	connection, buffered, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, err := buffered.Peek(buffered.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, connection.Close())
	}
	watched := &watchedConn{Conn: connection, gone: t.gone}
	reader := bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(early)), watched))
	return watched, bufio.NewReadWriter(reader, bufio.NewWriter(watched)), nil
}

// watchedConn tells when it cannot be read any more. Both protocols read all the
// time.
type watchedConn struct {
	net.Conn
	gone func()
}

// Read reads, and reports the end of the connection.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

// Close closes, and reports it: a protocol that its client has taken leave of closes
// the connection without reading on.
func (c *watchedConn) Close() error {
	c.gone()
	return c.Conn.Close()
}
