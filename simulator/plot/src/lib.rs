//! What the simulator's reports are drawn with: plots as SVG, and the one self-contained page around them.
//!
//! [`Chart`] says what there is to see, [`Page`] puts charts, tables and words under each other. Nothing is loaded from
//! elsewhere: no scripts, no fonts, no images. Deliberately absent: what the numbers are and where they come from.

mod bars;
mod chart;
mod draw;
mod page;
mod unit;
mod values;

pub use bars::Bars;
pub use chart::{Axis, Chart, Marks, Scale, Series};
pub use draw::PlotError;
pub use page::{Page, Table};
pub use unit::Unit;
pub use values::{cumulative, histogram};
