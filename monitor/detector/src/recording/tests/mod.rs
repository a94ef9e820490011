//! Recordings of made-up VMs.

mod file;
mod format_one;
mod live;
mod replay;
mod ring;
mod round_trip;

use std::{sync::Arc, time::Duration};

use super::{Recording, Ring};
use crate::verdict::{Act, Input};
use live::*;
