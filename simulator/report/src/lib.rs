//! What runs of simulated fleets have shown: figures, checks, and how they are told.
//!
//! ```text
//! measure    times and sizes of many devices, as distributions
//! check      claims that were held against what was seen
//! run        the whole of a run, as it is written to a file
//! ```
//!
//! Knows nothing of fleets: those who run them fill a [`RunReport`], those who read it need no fleet.

mod check;
mod measure;
mod run;

pub use check::Check;
pub use measure::{Distribution, Histogram, Times, distribution_of};
pub use run::{Connections, Figure, Machine, Mode, Phase, RUN_REPORT_VERSION, RunReport, Series, Shape};
