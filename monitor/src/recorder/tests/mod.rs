//! Recordings of made-up VMs, on disk and as a view.

mod archive;
mod history;
#[path = "../../../detector/src/recording/tests/live.rs"]
mod live;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use flatline_detector::verdict::Input;
use live::*;
