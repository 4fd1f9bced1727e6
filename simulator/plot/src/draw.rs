//! How a plot looks. The only module that names plotters.
//!
//! The background is left open, and ink and grid have one colour each, which [`crate::Page`] exchanges on a dark screen;
//! the colours of series are readable on both.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::element::{Cross, TriangleMarker};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::chart::{Axis, Chart, Marks, Scale, Series};

const WIDTH: u32 = 880;
const HEIGHT: u32 = 420;
const LEGEND_WIDTH: u32 = 220;
const LEGEND_LINE: i32 = 24;
const FONT: &str = "sans-serif";
const FONT_SIZE: u32 = 16;
const TITLE_SIZE: u32 = 20;

/// Words and axes.
pub(crate) const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
/// Lines behind.
pub(crate) const GRID: RGBColor = RGBColor(0xd0, 0xd7, 0xde);
/// Of series, in their order. At least 3:1 against white and against nearly black.
pub(crate) const COLOURS: [RGBColor; 8] = [
    RGBColor(0x2b, 0x7d, 0xe9),
    RGBColor(0xd9, 0x48, 0x0f),
    RGBColor(0x2b, 0x96, 0x3c),
    RGBColor(0x9c, 0x5f, 0xd6),
    RGBColor(0xc2, 0x3b, 0x6b),
    RGBColor(0x0c, 0x85, 0x99),
    RGBColor(0x9a, 0x7b, 0x0a),
    RGBColor(0x7d, 0x86, 0x90),
];

/// A plot could not be drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("draw a plot: {0}")]
pub struct PlotError(String);

fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError(error.to_string())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(chart: &Chart) -> Result<String, PlotError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let (plot, legend) = root.split_horizontally(WIDTH - LEGEND_WIDTH);
        let shown: Vec<Series> = chart.series.iter().map(|series| placeable(series, chart)).collect();
        let x = range(&chart.x, shown.iter().flat_map(ends_of));
        let y = range(&chart.y, shown.iter().flat_map(|series| series.points.iter().map(|point| point.1)));
        match (chart.x.scale, chart.y.scale) {
            (Scale::Linear, Scale::Linear) => plot_on(&plot, chart, &shown, x, y)?,
            (Scale::Linear, Scale::Logarithmic) => plot_on(&plot, chart, &shown, x, y.log_scale())?,
            (Scale::Logarithmic, Scale::Linear) => plot_on(&plot, chart, &shown, x.log_scale(), y)?,
            (Scale::Logarithmic, Scale::Logarithmic) => {
                plot_on(&plot, chart, &shown, x.log_scale(), y.log_scale())?;
            }
        }
        name_series(&legend, &shown)?;
        root.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The series, without what has no place on the axes.
fn placeable(series: &Series, chart: &Chart) -> Series {
    let fits = |value: f64, axis: &Axis| value.is_finite() && (value > 0.0 || axis.scale == Scale::Linear);
    let points = series.points.iter().filter(|(x, y)| fits(*x, &chart.x) && fits(*y, &chart.y));
    Series { points: points.copied().collect(), ..series.clone() }
}

/// Where a series lies on the x axis, bars with their width.
fn ends_of(series: &Series) -> Vec<f64> {
    let starts = series.points.iter().map(|point| point.0);
    match series.marks {
        Marks::Bars { width } => starts.flat_map(|x| [x, x + width]).collect(),
        Marks::LineAndPoints | Marks::Line | Marks::Points | Marks::Steps => starts.collect(),
    }
}

/// Whole decades, or from zero to a little above the largest.
fn range(axis: &Axis, values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 1.0..10.0;
    }
    match axis.scale {
        Scale::Linear => {
            let span = (high - low.min(0.0)).max(f64::MIN_POSITIVE);
            let above = if span > f64::MIN_POSITIVE { high + span * 0.04 } else { high + 1.0 };
            low.min(0.0)..above
        }
        Scale::Logarithmic => {
            let (first, last) = (low.log10().floor(), high.log10().ceil());
            10_f64.powf(first)..10_f64.powf(last.max(first + 1.0))
        }
    }
}

fn plot_on<X, Y>(area: &Area<'_>, chart: &Chart, shown: &[Series], x: X, y: Y) -> Result<(), PlotError>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let text = (FONT, FONT_SIZE).into_font().color(&INK);
    let mut context = ChartBuilder::on(area)
        .margin(12)
        .caption(&chart.title, (FONT, TITLE_SIZE).into_font().color(&INK))
        .x_label_area_size(46)
        .y_label_area_size(86)
        .build_cartesian_2d(x, y)
        .map_err(failed)?;
    context
        .configure_mesh()
        .x_labels(8)
        .y_labels(8)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text.clone())
        .axis_desc_style(text)
        .x_desc(&chart.x.label)
        .y_desc(&chart.y.label)
        .x_label_formatter(&|value| chart.x.unit.show(*value))
        .y_label_formatter(&|value| chart.y.unit.show(*value))
        .draw()
        .map_err(failed)?;
    // Whoever is emphasised lies on top.
    let order = (0..shown.len()).filter(|at| !shown[*at].is_emphasised);
    for at in order.chain((0..shown.len()).filter(|at| shown[*at].is_emphasised)) {
        let series = &shown[at];
        let (line, width) = (line_of(series), width_of(series));
        let style = colour(at).stroke_width(width);
        if !line.is_empty() {
            context.draw_series(std::iter::once(PathElement::new(line, style))).map_err(failed)?;
        }
        match series.marks {
            Marks::Bars { width } => {
                let bar = |(x, y): &(f64, f64)| {
                    Rectangle::new([(*x, 0.0), (x + width * 0.96, *y)], colour(at).filled())
                };
                context.draw_series(series.points.iter().map(bar)).map_err(failed)?;
            }
            Marks::LineAndPoints | Marks::Points => {
                let marks = series.points.iter().map(|point| mark(at, *point, series.is_emphasised));
                context.draw_series(marks).map_err(failed)?;
            }
            Marks::Line | Marks::Steps => {}
        }
    }
    Ok(())
}

/// The corners of a series' line; none where it has no line.
fn line_of(series: &Series) -> Vec<(f64, f64)> {
    match series.marks {
        Marks::LineAndPoints | Marks::Line => series.points.clone(),
        Marks::Steps => {
            let mut corners = Vec::with_capacity(series.points.len() * 2);
            for point in &series.points {
                if let Some((_, before)) = corners.last() {
                    corners.push((point.0, *before));
                }
                corners.push(*point);
            }
            corners
        }
        Marks::Points | Marks::Bars { .. } => Vec::new(),
    }
}

const fn width_of(series: &Series) -> u32 {
    if series.is_emphasised { 4 } else { 2 }
}

const fn colour(at: usize) -> RGBColor {
    COLOURS[at % COLOURS.len()]
}

/// Shapes differ too, for those to whom colours do not.
fn mark<DB: DrawingBackend, C: Clone + 'static>(
    at: usize,
    point: C,
    is_large: bool,
) -> DynElement<'static, DB, C> {
    let size = if is_large { 6 } else { 4 };
    let filled = colour(at).filled();
    match at % 3 {
        0 => Circle::new(point, size, filled).into_dyn(),
        1 => TriangleMarker::new(point, size + 1, filled).into_dyn(),
        _ => Cross::new(point, size, colour(at).stroke_width(2)).into_dyn(),
    }
}

/// Which colour is which series, beside the plot.
fn name_series(area: &Area<'_>, shown: &[Series]) -> Result<(), PlotError> {
    let left = Pos::new(HPos::Left, VPos::Center);
    let text = (FONT, FONT_SIZE).into_font().color(&INK).pos(left);
    for (at, series) in shown.iter().enumerate() {
        let y = 52 + LEGEND_LINE * i32::try_from(at).unwrap_or(i32::MAX / LEGEND_LINE - 3);
        let style = colour(at).stroke_width(width_of(series));
        area.draw(&PathElement::new(vec![(4, y), (30, y)], style)).map_err(failed)?;
        area.draw(&mark(at, (17, y), series.is_emphasised)).map_err(failed)?;
        area.draw(&Text::new(series.name.as_str(), (40, y), &text)).map_err(failed)?;
    }
    Ok(())
}
