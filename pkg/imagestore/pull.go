package imagestore

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Pull makes sure that the newest content of an image is here and returns it. Many
// pulls of one place share one download; each name is given to the image. A
// digest in the name is compared to the bytes as the server sends them, before
// anything is unwrapped. When ctx ends, other callers of the same download are
// not disturbed; after the last one, what has arrived is kept for the next pull.
func (s *Store) Pull(ctx context.Context, name string, c Credentials) (Image, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return Image{}, err
	}
	where, err := s.locate(ref)
	if err != nil {
		return Image{}, err
	}
	for {
		landed, err := s.flights.do(ctx, where.key(), ref.Digest+c.fingerprint(), func(ctx context.Context) (landing, error) {
			return s.fetch(ctx, ref, where, c)
		})
		if err != nil {
			return Image{}, fmt.Errorf("pull image %q: %w", name, err)
		}
		// Another caller's flight gave the image that caller's name, not ours.
		r, err := s.addName(landed, ref)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // removed by somebody since the flight landed
		}
		if err != nil {
			return Image{}, fmt.Errorf("pull image %q: %w", name, err)
		}
		return r.image(s.paths.data(r.ID)), nil
	}
}

// fetch is the work of one flight.
func (s *Store) fetch(ctx context.Context, ref Reference, where location, c Credentials) (landing, error) {
	key := where.key()
	var known origin
	stored := s.index.byOrigin(key)
	if stored != nil && (ref.Digest == "" || stored.Origins[key].Digest == ref.Digest) {
		known = stored.Origins[key]
	}
	t := s.transfers.begin(ref.String(), where.String(), s.now())
	defer s.transfers.end(t)
	place := newHTTPPlace(where, c, known)
	defer place.close()

	for restarts := 0; ; restarts++ {
		landed, err := s.fetchOnce(ctx, ref, key, place, t)
		switch {
		case errors.Is(err, errNotModified):
			s.log.Debug("image is unchanged on the server", "image", ref.String(), "id", stored.ID)
			return landing{id: stored.ID, digest: known.Digest}, nil
		case errors.Is(err, errRestart) && restarts < maxRestarts:
			s.log.Info("image changed during its download, which begins anew", "image", ref.String(), "source", where.String())
			continue
		case err != nil:
			s.log.Warn("image was not pulled", "image", ref.String(), "source", where.String(), "err", err)
			return landing{}, err
		}
		s.log.Info("image was pulled", "image", ref.String(), "source", where.String(), "id", landed.id,
			"bytes", t.done.Load(), "elapsed", s.now().Sub(t.started))
		return landed, nil
	}
}

func (s *Store) fetchOnce(ctx context.Context, ref Reference, key string, from place, t *transfer) (_ landing, err error) {
	part, err := openPartial(s.paths, key)
	if err != nil {
		return landing{}, err
	}
	d := &download{place: from, part: part, store: s, transfer: t}
	defer func() {
		// What broke off can go on; what was judged bad is of no use.
		keep := err != nil && (ctx.Err() != nil || errors.Is(err, errTemporary))
		err = errors.Join(err, d.disconnect(), part.close(keep))
	}()
	if err := d.connect(ctx); err != nil {
		return landing{}, err
	}
	if r := s.index.byDigest(ref.Digest); r != nil {
		// The server let us in, and no byte can differ from what is stored.
		return landing{id: r.ID, digest: ref.Digest}, nil
	}
	got, err := s.receive(ctx, d)
	if err != nil {
		return landing{}, err
	}
	if ref.Digest != "" && ref.Digest != got.digest {
		return landing{}, classed(errdefs.ErrDataLoss, "the server sent content with digest sha256:%s, but the name says sha256:%s", got.digest, ref.Digest)
	}
	return landing{id: got.id, digest: got.digest}, s.add(ctx, got, ref, key)
}
