//! Bars in parts, one under the other: what a whole is made of, several times.
//!
//! Drawn by hand: plotters has no axis of names.

use std::fmt::Write as _;

use crate::draw::{COLOURS, GRID, INK};
use crate::page::{escaped, hex};
use crate::unit::Unit;

const WIDTH: f64 = 880.0;
const NAMES: f64 = 200.0;
const TOTALS: f64 = 90.0;
const LINE: f64 = 30.0;
const HEIGHT: f64 = 18.0;
const TOP: f64 = 70.0;

/// Bars in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    title: String,
    unit: Unit,
    parts: Vec<String>,
    rows: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// Bars of these parts, none yet.
    pub fn new<S: Into<String>>(
        title: impl Into<String>,
        unit: Unit,
        parts: impl IntoIterator<Item = S>,
    ) -> Self {
        let parts = parts.into_iter().map(Into::into).collect();
        Self { title: title.into(), unit, parts, rows: Vec::new() }
    }

    /// One bar more, with as much of each part, in their order. What is not above zero is left out.
    pub fn row(&mut self, name: impl Into<String>, parts: impl IntoIterator<Item = f64>) {
        let part = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        self.rows.push((name.into(), parts.into_iter().map(part).collect()));
    }

    /// An SVG element for a page.
    pub(crate) fn to_svg(&self) -> String {
        let (ink, grid) = (hex(INK), hex(GRID));
        let height = TOP + LINE * self.rows.len() as f64 + 8.0;
        let total = |parts: &[f64]| parts.iter().sum::<f64>();
        let most = self.rows.iter().map(|(_, parts)| total(parts)).fold(0.0, f64::max);
        let scale = if most > 0.0 { (WIDTH - NAMES - TOTALS) / most } else { 0.0 };
        let mut svg = format!(
            "<svg role=\"img\" aria-label=\"{}\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\">\n\
             <text x=\"{}\" y=\"24\" text-anchor=\"middle\" font-size=\"20\" fill=\"{ink}\">{}</text>\n",
            escaped(&self.title),
            WIDTH / 2.0,
            escaped(&self.title)
        );
        let mut x = NAMES;
        for (part, colour) in self.parts.iter().zip(COLOURS.iter().cycle()) {
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"42\" width=\"14\" height=\"14\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"54\" font-size=\"14\" fill=\"{ink}\">{}</text>",
                hex(*colour),
                x + 20.0,
                escaped(part)
            );
            x += 44.0 + 8.0 * part.chars().count() as f64;
        }
        for (at, (name, parts)) in self.rows.iter().enumerate() {
            let y = TOP + LINE * at as f64;
            let base = y + HEIGHT - 4.0;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\" font-size=\"14\" fill=\"{ink}\">{}</text>\
                 <line x1=\"{NAMES}\" y1=\"{}\" x2=\"{NAMES}\" y2=\"{}\" stroke=\"{grid}\"/>",
                NAMES - 10.0,
                escaped(name),
                y - 6.0,
                y + HEIGHT + 6.0
            );
            let mut x = NAMES;
            for ((part, value), colour) in self.parts.iter().zip(parts).zip(COLOURS.iter().cycle()) {
                let width = value * scale;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{HEIGHT}\" fill=\"{}\">\
                     <title>{}: {}</title></rect>",
                    hex(*colour),
                    escaped(part),
                    self.unit.show(*value)
                );
                x += width;
            }
            let _ = writeln!(
                svg,
                "<text x=\"{:.2}\" y=\"{base}\" font-size=\"14\" fill=\"{ink}\">{}</text>",
                x + 8.0,
                self.unit.show(total(parts))
            );
        }
        svg.push_str("</svg>\n");
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_what_they_stand_for() {
        let mut bars = Bars::new("CPU", Unit::Seconds, ["a", "b"]);
        bars.row("half <of it>", [1.0, 0.0]);
        bars.row("all", [1.0, 1.0]);
        let svg = bars.to_svg();
        let widths: Vec<&str> = svg
            .split("height=\"18\"")
            .filter_map(|part| part.rsplit_once("width=\"")?.1.split('"').next())
            .collect();
        assert_eq!(&widths[..4], ["295.00", "0.00", "295.00", "295.00"]);
        assert!(svg.contains("half &lt;of it&gt;") && svg.contains(">2 s</text>"));
    }
}
