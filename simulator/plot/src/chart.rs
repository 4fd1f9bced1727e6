//! What a plot shows: two axes, and series of points between them.
//!
//! Leaves to `draw` how that looks.

use crate::draw::{PlotError, draw};
use crate::unit::Unit;

/// How an axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps, from zero.
    Linear,
    /// Equal factors, in whole decades. What is not above zero has no place on it, and is left out.
    Logarithmic,
}

/// One of the two axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    pub(crate) label: String,
    pub(crate) unit: Unit,
    pub(crate) scale: Scale,
}

impl Axis {
    /// An axis of equal steps.
    pub fn linear(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Linear }
    }

    /// An axis of decades.
    pub fn logarithmic(label: impl Into<String>, unit: Unit) -> Self {
        Self { label: label.into(), unit, scale: Scale::Logarithmic }
    }
}

/// What stands for the points of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Marks {
    /// A line, with a mark at each point.
    LineAndPoints,
    /// A line alone: for many points, such as a time series.
    Line,
    /// Marks alone: a scatter plot.
    Points,
    /// A line that keeps a value until the next point: a cumulative distribution.
    Steps,
    /// A bar from each point's x, as wide as this: a histogram.
    Bars {
        /// The width, in units of x.
        width: f64,
    },
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) marks: Marks,
    pub(crate) is_emphasised: bool,
}

impl Series {
    /// A series that is drawn as `marks`.
    pub fn new(name: impl Into<String>, marks: Marks, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), marks, is_emphasised: false }
    }

    /// The one that the eye should find first.
    #[must_use]
    pub fn emphasised(mut self) -> Self {
        self.is_emphasised = true;
        self
    }
}

/// A plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

impl Chart {
    /// A plot with nothing in it.
    pub fn new(title: impl Into<String>, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, series: Vec::new() }
    }

    /// Adds a series. Colours and shapes go by the order in which they are added.
    pub fn add(&mut self, series: Series) {
        self.series.push(series);
    }

    /// The same plot with one series more.
    #[must_use]
    pub fn with(mut self, series: Series) -> Self {
        self.add(series);
        self
    }

    /// An SVG document of its own, in colours for a light background.
    ///
    /// # Errors
    /// [`PlotError`], when it cannot be drawn.
    pub fn to_svg(&self) -> Result<String, PlotError> {
        draw(self)
    }
}
