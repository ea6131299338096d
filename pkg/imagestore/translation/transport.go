package translation

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Transport is a profile of how to fetch.
type Transport struct {
	// ID differs between the profiles of all files.
	ID string
	// Timeout limits a whole download; 0 means that nothing does.
	Timeout time.Duration
	// MaxRedirects is how many redirects are followed; negative means the default.
	MaxRedirects int
	// Proxy is the proxy to use; nil means those of the environment.
	Proxy *url.URL
	// TLS has authorities, client certificates and server name; nil means the defaults.
	TLS *tls.Config
}

func parseTransport(v value) (*Transport, error) {
	t := &Transport{MaxRedirects: -1}
	var milliseconds int
	err := v.mapping(map[string]func(value) error{
		"timeout":      func(v value) error { return v.number(&milliseconds) },
		"maxRedirects": func(v value) error { return v.number(&t.MaxRedirects) },
		"proxy":        func(v value) error { return v.proxy(&t.Proxy) },
		"tls": func(v value) error {
			if v.resolved().null() {
				return nil
			}
			t.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			return parseTLS(v, t.TLS)
		},
	}, func() error { return nil })
	t.Timeout = time.Duration(max(milliseconds, 0)) * time.Millisecond
	return t, err
}

func parseTLS(v value, c *tls.Config) error {
	var err error
	if c.RootCAs, err = x509.SystemCertPool(); err != nil {
		c.RootCAs = x509.NewCertPool()
	}
	return v.mapping(map[string]func(value) error{
		"certificates": func(v value) error {
			return v.list(func(v value) error { return parseCertificate(v, c) })
		},
		"serverName": func(v value) error { return v.text(&c.ServerName) },
		"insecure":   func(v value) error { return v.flag(&c.InsecureSkipVerify) },
	}, func() error { return nil })
}

// parseCertificate adds authorities to the trusted ones, and the certificate whose key
// is given to those that we show. The key may stand in either field.
func parseCertificate(v value, c *tls.Config) error {
	var certificate, key string
	return v.mapping(map[string]func(value) error{
		"cert": func(v value) error { return v.text(&certificate) },
		"key":  func(v value) error { return v.text(&key) },
	}, func() error {
		certificates, private, err := decodePEM(key + "\n" + certificate)
		if err == nil {
			err = use(certificates, private, c)
		}
		if err != nil {
			return v.fault("%s", err)
		}
		return nil
	})
}

func use(certificates []*x509.Certificate, key crypto.Signer, c *tls.Config) error {
	if len(certificates) == 0 {
		return errors.New("there is no PEM block CERTIFICATE")
	}
	var shown *x509.Certificate
	var authorities []*x509.Certificate
	for _, certificate := range certificates {
		switch {
		case belongs(key, certificate):
			shown = certificate // tools make certificates that sign themselves authorities
		case !certificate.IsCA && key == nil:
			return errors.New("the certificate is neither that of an authority (CA) nor has it a key")
		case !certificate.IsCA:
			return errors.New("the key does not belong to the certificate")
		}
		if certificate.IsCA {
			authorities = append(authorities, certificate)
			c.RootCAs.AddCert(certificate)
		}
	}
	if shown != nil {
		c.Certificates = append(c.Certificates, chain(shown, authorities, key))
	}
	return nil
}

// belongs tells whether a private key is that of a certificate.
func belongs(key crypto.Signer, certificate *x509.Certificate) bool {
	if key == nil {
		return false
	}
	public, ok := key.Public().(interface{ Equal(x crypto.PublicKey) bool })
	return ok && public.Equal(certificate.PublicKey)
}

// chain is a certificate to be shown with those of the authorities between it and
// one that the server knows.
func chain(leaf *x509.Certificate, authorities []*x509.Certificate, key crypto.Signer) tls.Certificate {
	shown := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, authority := range authorities {
		if authority != leaf {
			shown.Certificate = append(shown.Certificate, authority.Raw)
		}
	}
	return shown
}

// decodePEM returns all certificates and the first private key.
func decodePEM(text string) (certificates []*x509.Certificate, key crypto.Signer, err error) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "CERTIFICATE":
			certificate, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("a certificate cannot be read: %w", err)
			}
			certificates = append(certificates, certificate)
		case strings.HasSuffix(block.Type, "PRIVATE KEY") && key == nil:
			if key, err = parseKey(block.Bytes); err != nil {
				return nil, nil, err
			}
		}
	}
	return certificates, key, nil
}

func parseKey(der []byte) (crypto.Signer, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errors.New("the private key cannot be read")
}
