//! The targets under libFuzzer, which mutates by what the input reached. libFuzzer owns the arguments,
//! so the target is named by `CLAWMATRIX_FUZZ_TARGET`; with `CLAWMATRIX_FUZZ_SEEDS` its seeds are
//! written to that folder first.
#![no_main]

use std::sync::LazyLock;

use clawmatrix_fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("CLAWMATRIX_FUZZ_TARGET").unwrap_or_default();
    TARGETS
        .iter()
        .find(|target| target.name == name)
        .unwrap_or_else(|| panic!("CLAWMATRIX_FUZZ_TARGET: no target `{name}`"))
});

libfuzzer_sys::fuzz_target!(
    init: {
        if let Some(folder) = std::env::var_os("CLAWMATRIX_FUZZ_SEEDS") {
            clawmatrix_fuzz::write_seeds(&TARGET, folder.as_ref());
        }
    },
    |data: &[u8]| (TARGET.run)(data)
);
