package main

import (
	"bytes"
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// plotGrowth draws each figure over the number of VM pods as an SVG picture: what
// was measured, and the straight line from nothing through the first measurement,
// above which growth would be worse than linear.
func plotGrowth(loads []load) ([]byte, error) {
	const (
		columns       = 2
		width, height = 20 * vg.Centimeter, 14 * vg.Centimeter
	)
	all := figures()
	rows := make([][]*plot.Plot, (len(all)+columns-1)/columns)
	for i, f := range all {
		p, err := plotFigure(f, loads)
		if err != nil {
			return nil, fmt.Errorf("plot %s: %w", f.what, err)
		}
		rows[i/columns] = append(rows[i/columns], p)
	}
	canvas := vgsvg.New(width, height)
	tiles := draw.Tiles{Rows: len(rows), Cols: columns, PadX: vg.Centimeter, PadY: vg.Centimeter}
	for y, line := range plot.Align(rows, tiles, draw.New(canvas)) {
		for x, place := range line {
			rows[y][x].Draw(place)
		}
	}
	var picture bytes.Buffer
	if _, err := canvas.WriteTo(&picture); err != nil {
		return nil, fmt.Errorf("write the plot: %w", err)
	}
	return picture.Bytes(), nil
}

func plotFigure(f figure, loads []load) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = f.what
	p.X.Label.Text, p.Y.Label.Text = "VM pods", f.unit
	p.X.Min, p.Y.Min = 0, 0
	var measured, linear plotter.XYs
	for _, l := range loads {
		x := float64(l.pods)
		measured = append(measured, plotter.XY{X: x, Y: f.of(l)})
		linear = append(linear, plotter.XY{X: x, Y: f.of(loads[0]) * x / float64(loads[0].pods)})
	}
	line, points, err := plotter.NewLinePoints(measured)
	if err != nil {
		return nil, err
	}
	bound, err := plotter.NewLine(linear)
	if err != nil {
		return nil, err
	}
	bound.Color = color.Gray{Y: 128}
	bound.Dashes = []vg.Length{vg.Points(3), vg.Points(3)}
	p.Add(plotter.NewGrid(), line, points, bound)
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Add("measured", line, points)
	p.Legend.Add("linear growth", bound)
	return p, nil
}
