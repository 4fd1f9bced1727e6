//! The scenarios that come with the program: `simulator/scenarios`.

/// Each by its name, with its text.
pub const SHIPPED: &[(&str, &str)] = &[
    ("first-day", include_str!("../../scenarios/first-day.toml")),
    ("stolen-truck", include_str!("../../scenarios/stolen-truck.toml")),
    ("steady-year", include_str!("../../scenarios/steady-year.toml")),
    ("power-cut", include_str!("../../scenarios/power-cut.toml")),
    ("bad-cellular", include_str!("../../scenarios/bad-cellular.toml")),
    ("post-quantum", include_str!("../../scenarios/post-quantum.toml")),
];

/// The text of the shipped scenario of this name.
pub fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(of, _)| *of == name).map(|(_, text)| *text)
}
