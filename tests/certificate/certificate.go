// Package certificate makes TLS certificates for servers on the loopback, for tests.
//
// A certificate signs itself, so that its file is also the authority that a client must
// trust. It is good for 127.0.0.1, for a day.
//
// Concurrency: Write may be called concurrently for different folders.
package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validity is how long a certificate is good, in both directions: clocks differ.
const validity = 24 * time.Hour

// Files are a certificate and its key, PEM.
type Files struct{ Cert, Key string }

// Write makes a new certificate in a folder, in place of one that is there.
func Write(dir string) (Files, error) {
	files := Files{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, fmt.Errorf("make certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-validity), NotAfter: time.Now().Add(validity), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return files, fmt.Errorf("make certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return files, fmt.Errorf("make certificate: %w", err)
	}
	if err := os.WriteFile(files.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return files, fmt.Errorf("make certificate: %w", err)
	}
	if err := os.WriteFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return files, fmt.Errorf("make certificate: %w", err)
	}
	return files, nil
}
