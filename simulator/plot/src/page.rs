//! One self-contained HTML page: headings, words, tables and plots under each other, readable in light and dark.
//!
//! Leaves to the caller what it says. Everything is escaped here, and nothing is loaded from elsewhere.

use std::fmt::Write as _;

use crate::bars::Bars;
use crate::chart::Chart;
use crate::draw::{GRID, INK, PlotError};

/// A table. The first row of a group of rows may name it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    cells: Vec<String>,
    is_emphasised: bool,
    is_group: bool,
}

impl Table {
    /// A table with these columns. All but the first hold numbers, and are set to the right.
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// A line across all columns, over the rows that follow.
    pub fn group(&mut self, name: impl Into<String>) {
        self.rows.push(Row { cells: vec![name.into()], is_emphasised: false, is_group: true });
    }

    /// A row. A cell that is the last and not in the last column reaches to the end.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>, is_emphasised: bool) {
        let cells = cells.into_iter().map(Into::into).collect();
        self.rows.push(Row { cells, is_emphasised, is_group: false });
    }

    fn write(&self, out: &mut String) {
        out.push_str("<div class=\"wide\"><table>\n<thead><tr>");
        for name in &self.head {
            let _ = write!(out, "<th>{}</th>", escaped(name));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            let class = match (row.is_group, row.is_emphasised) {
                (true, _) => " class=\"group\"",
                (false, true) => " class=\"first\"",
                (false, false) => "",
            };
            let _ = write!(out, "<tr{class}>");
            for (at, cell) in row.cells.iter().enumerate() {
                let is_last = at + 1 == row.cells.len();
                let span = self.head.len().saturating_sub(at);
                match is_last && span > 1 {
                    true => {
                        let _ = write!(out, "<td colspan=\"{span}\" class=\"words\">{}</td>", escaped(cell));
                    }
                    false => {
                        let _ = write!(out, "<td>{}</td>", escaped(cell));
                    }
                }
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
    }
}

/// A page.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with nothing but its title.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), body: String::new() }
    }

    /// Goes on with a section.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(text));
    }

    /// Goes on with a part of a section.
    pub fn subheading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escaped(text));
    }

    /// Goes on with a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// Goes on with a list.
    pub fn list<S: AsRef<str>>(&mut self, items: impl IntoIterator<Item = S>) {
        self.body.push_str("<ul>\n");
        for item in items {
            let _ = writeln!(self.body, "<li>{}</li>", escaped(item.as_ref()));
        }
        self.body.push_str("</ul>\n");
    }

    /// Goes on with a table.
    pub fn table(&mut self, table: &Table) {
        table.write(&mut self.body);
    }

    /// Goes on with a plot.
    ///
    /// # Errors
    /// [`PlotError`], when it cannot be drawn.
    pub fn chart(&mut self, chart: &Chart) -> Result<(), PlotError> {
        // Within HTML an SVG needs no namespace, and the page names no address at all.
        let svg = chart.to_svg()?.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
        let label = format!("<svg role=\"img\" aria-label=\"{}\"", escaped(&chart.title));
        let svg = svg.replacen("<svg", &label, 1);
        let _ = writeln!(self.body, "<figure>\n{svg}</figure>");
        Ok(())
    }

    /// Goes on with bars in parts.
    pub fn bars(&mut self, bars: &Bars) {
        let _ = writeln!(self.body, "<figure>\n{}</figure>", bars.to_svg());
    }

    /// The whole document.
    pub fn to_html(&self) -> String {
        let title = escaped(&self.title);
        let (ink, grid) = (hex(INK), hex(GRID));
        let dark = format!(
            "svg [fill=\"{ink}\"] {{ fill: var(--ink); }} svg [stroke=\"{ink}\"] {{ stroke: var(--ink); }} \
             svg [stroke=\"{grid}\"] {{ stroke: var(--line); }}"
        );
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
             <style>\n{STYLE}{dark}\n</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{}</main>\n</body>\n</html>\n",
            self.body
        )
    }
}

/// Colours follow what the reader's system asks for.
const STYLE: &str = "\
:root { color-scheme: light dark; --ink: #24292f; --paper: #ffffff; --soft: #f3f5f7; --line: #d0d7de; --first: #e3effd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #15181c; --soft: #1e2329; --line: #3a424c; --first: #1b2f4a; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; margin-top: 1.6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; width: 100%; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td.words { text-align: left; }
td:first-child { white-space: nowrap; }
th { background: var(--soft); vertical-align: bottom; }
tr.group td { font-weight: 600; padding-top: 14px; }
tr.first td { background: var(--first); }
figure { margin: 20px 0; } svg { max-width: 100%; height: auto; } svg text { font-family: system-ui, sans-serif; }
";

pub(crate) fn hex(colour: plotters::style::RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::{Axis, Marks, Series};
    use crate::unit::Unit;

    fn page() -> String {
        let chart =
            Chart::new("cost", Axis::logarithmic("N", Unit::Count), Axis::logarithmic("CPU", Unit::Seconds))
                .with(Series::new("a & b", Marks::LineAndPoints, [(100.0, 0.001), (1e5, 0.2), (1e6, 0.0)]));
        let mut table = Table::new(["what", "how much", "why"]);
        table.group("100");
        table.row(["<script>", "1", "2"], true);
        table.row(["b", "not reached"], false);
        let mut page = Page::new("A \"page\"");
        page.heading("First");
        page.paragraph("1 < 2");
        page.table(&table);
        page.chart(&chart).expect("it can be drawn");
        page.to_html()
    }

    #[test]
    fn a_page_holds_its_plots_and_asks_for_nothing_from_elsewhere() {
        let html = page();
        assert_eq!(html.matches("<svg").count(), 1);
        assert_eq!(html.matches("</svg>").count(), 1);
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "it names {outside}");
        }
        assert!(html.contains("a &amp; b</text>") || html.contains("a &amp; b\n</text>"));
    }

    #[test]
    fn words_cannot_become_markup() {
        let html = page();
        assert!(html.contains("&lt;script&gt;") && !html.contains("<script>"));
        assert!(html.contains("<td colspan=\"2\" class=\"words\">not reached</td>"));
    }

    #[test]
    fn what_has_no_place_on_an_axis_is_left_out() {
        let html = page();
        let line = html
            .split("<polyline")
            .find(|part| part.contains("stroke=\"#2B7DE9\"") && part.contains("points"));
        let points = line.and_then(|line| line.split("points=\"").nth(1)).and_then(|p| p.split('"').next());
        assert_eq!(points.map(|points| points.split_whitespace().count()), Some(2));
    }
}
