//! The scenarios that come with the program, so that it works away from its sources.

macro_rules! catalogue {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each.
        pub const SCENARIOS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../tests/scenarios/", $name, ".toml")))),*];
    };
}

catalogue!["kilo-489"];
