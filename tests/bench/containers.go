package main

import "context"

func measureContainers(ctx context.Context, e environment) (section, error) { return section{Name: "containers"}, nil }
