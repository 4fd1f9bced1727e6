//! What runs of simulated fleets have shown: figures, checks, and how they are told.
//!
//! ```text
//! measure    times and sizes of many devices, as distributions
//! median     the value in the middle; memory, cpu: what a process and a thread have cost
//! check      claims that were held against what was seen
//! run        the whole of a run, as it is written to a file
//! observer   who is told of a run while it goes on; live: on standard error
//! text       a run for a terminal; long: as CSV; page: as HTML, sizes: several against the size of the fleet
//! compare    two runs beside each other; compare_told: how that is told
//! quantity   numbers with their units; words: what is said of runs in words
//! command    `fleetkey-sim report` and `fleetkey-sim compare`; file: where reports come from and go to
//! ```
//!
//! Knows nothing of fleets: those who run them fill a [`RunReport`], those who read it need no fleet.

mod check;
mod command;
mod compare;
mod compare_told;
mod cpu;
mod file;
mod live;
mod long;
mod measure;
mod median;
pub mod memory;
mod observer;
mod page;
mod quantity;
mod run;
mod sizes;
mod text;
mod words;

pub use check::Check;
pub use command::{Compare, Report, SeveralScenarios};
pub use compare::{
    COMPARISON_VERSION, CannotCompare, Compared, Comparison, Difference, PhaseCompared, Verdict,
};
pub use compare_told::comparison_page;
pub use cpu::{cpu_of_this_thread, timed};
pub use file::{BadReport, Files, Outputs, Rendered, read};
pub use live::live;
pub use long::{Row, write_csv};
pub use measure::{Distribution, Histogram, Times, distribution_of};
pub use median::{median, median_seconds};
pub use observer::{Moment, Observer};
pub use page::{CPU_PARTS, page};
pub use run::{Connections, Figure, Machine, Mode, Phase, RUN_REPORT_VERSION, RunReport, Series, Shape};
