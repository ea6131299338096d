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
// anything is unwrapped (for OCI: to the manifest). When ctx ends, other callers
// of the same download are not disturbed; after the last one, what has arrived is
// kept for the next pull.
func (s *Store) Pull(ctx context.Context, name string, c Credentials) (Image, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return Image{}, err
	}
	where, err := s.locate(ref)
	if err != nil {
		return Image{}, err
	}
	variant := ref.Digest + c.fingerprint() + where.secrets()
	for {
		landed, err := s.flights.do(ctx, where.key(), variant, func(ctx context.Context) (landing, error) {
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

// errTimeout ends a download that took longer than its transport profile allows.
var errTimeout = classed(errTemporary, "the download took longer than the timeout of its transport profile")

// fetch is the work of one flight.
func (s *Store) fetch(ctx context.Context, ref Reference, where location, c Credentials) (landed landing, err error) {
	if t := where.transport; t != nil && t.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t.Timeout, errTimeout)
		defer cancel()
	}
	began := s.now()
	if where.url.Scheme == schemeOCI {
		landed, err = s.fetchOCI(ctx, ref, where, c)
	} else {
		landed, err = s.fetchURL(ctx, ref, where, c)
	}
	s.counters.count(landed, err)
	switch {
	case err != nil:
		s.log.Warn("image was not pulled", "image", ref.String(), "source", where.String(), "err", err)
	case landed.unchanged:
		s.log.Debug("image is unchanged", "image", ref.String(), "source", where.String(), "id", landed.id)
	default:
		s.log.Info("image was pulled", "image", ref.String(), "source", where.String(), "id", landed.id, "elapsed", s.now().Sub(began))
	}
	return landed, err
}

// fetchURL fetches one file.
func (s *Store) fetchURL(ctx context.Context, ref Reference, where location, c Credentials) (landing, error) {
	key := where.key()
	var known origin
	stored := s.index.byOrigin(key)
	if stored != nil && (ref.Digest == "" || stored.Origins[key].Digest == ref.Digest) {
		known = stored.Origins[key]
	}
	var from place
	if where.url.Scheme == schemeFile {
		from = &filePlace{path: where.url.Path, roots: s.opts.FileRoots, known: known}
	} else {
		from = newHTTPPlace(where, c, known)
	}
	defer from.close()
	landed, err := s.download(ctx, job{ref: ref, origin: key, partial: key, place: from, source: where.String(), digest: ref.Digest})
	if errors.Is(err, errNotModified) {
		return landing{id: stored.ID, digest: known.Digest, unchanged: true}, nil
	}
	return landed, err
}

// job is one file to be downloaded and made an image.
type job struct {
	ref      Reference // the name that the image gets
	origin   string    // key under which is remembered where it came from
	manifest string    // digest by which it is known there, if not by its own
	partial  string    // key of the partial file
	place    place
	source   string // the place, for people
	digest   string // that the bytes must have; empty if any will do
	layer    bool   // a tar archive with the disk in /disk will do, too
}

// download runs a job, again if the content changes on the way.
func (s *Store) download(ctx context.Context, j job) (landing, error) {
	t := s.transfers.begin(j.ref.String(), j.source, s.now(), s.counters.fetched)
	defer s.transfers.end(t)
	for restarts := 0; ; restarts++ {
		landed, err := s.downloadOnce(ctx, j, t)
		if !errors.Is(err, errRestart) || restarts >= maxRestarts || ctx.Err() != nil {
			return landed, err
		}
		s.log.Info("image download begins anew", "image", j.ref.String(), "source", j.source, "cause", err)
		if err := s.pause(ctx, restarts+1); err != nil {
			return landing{}, err
		}
	}
}

func (s *Store) downloadOnce(ctx context.Context, j job, t *transfer) (_ landing, err error) {
	part, err := openPartial(s.paths, j.partial)
	if err != nil {
		return landing{}, err
	}
	part.background = s.flights.running.Go // this is called by a flight, so the group is not empty
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &download{place: j.place, part: part, store: s, transfer: t, cancel: cancel, told: s.now()}
	defer func() {
		// What broke off can go on; what was judged bad is of no use.
		keep := err != nil && (ctx.Err() != nil || errors.Is(err, errTemporary))
		err = join(err, d.disconnect(), part.close(keep))
	}()
	if err := d.connect(reading); err != nil {
		return landing{}, err
	}
	if r := s.index.byDigest(j.digest); r != nil {
		// The server let us in, and no byte can differ from what is stored.
		return landing{id: r.ID, digest: j.digest, unchanged: true}, nil
	}
	got, err := s.receive(reading, d, j.layer)
	if err != nil {
		return landing{}, err
	}
	if j.digest != "" && j.digest != got.digest {
		return landing{}, classed(errdefs.ErrDataLoss, "the server sent content with digest sha256:%s instead of sha256:%s", got.digest, j.digest)
	}
	return s.add(ctx, got, j)
}
