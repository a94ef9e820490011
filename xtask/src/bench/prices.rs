//! What a host pays, in one table: a few figures of the others, which stands before them.

use std::collections::BTreeMap;

use super::figures::Rounds;

/// What is paid, in the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Price {
    /// In ms a second.
    Alive,
    /// In ms a second.
    SomeSilent,
    /// In MiB.
    Memory,
    /// In MiB.
    KernelMemory,
    /// In ns.
    Packet,
    /// In ns.
    DeepRead,
    /// In ns.
    Read,
    /// In ns.
    OthersRead,
}

impl Price {
    fn what(self) -> (&'static str, &'static str) {
        match self {
            Self::Alive => {
                ("CPU time for 1,000 VMs that are alive, with taps and QMP", "ms a second")
            }
            Self::SomeSilent => {
                ("the same, 200 of them silent, with a page and Prometheus", "ms a second")
            }
            Self::Memory => ("memory of the daemon for them", "MiB"),
            Self::KernelMemory => ("the kernel's memory for its maps", "MiB"),
            Self::Packet => ("a packet of a VM, over an empty program", "ns"),
            Self::DeepRead => ("a VM's read of 32 at a time, over two empty programs", "ns"),
            Self::Read => ("a VM's read alone, over two empty programs", "ns"),
            Self::OthersRead => ("a read of another process, over two empty programs", "ns"),
        }
    }
}

/// Those that were measured.
#[derive(Debug, Default)]
pub(crate) struct Prices(BTreeMap<Price, Rounds>);

impl Prices {
    pub(crate) fn set(&mut self, price: Price, rounds: &Rounds) {
        self.0.insert(price, rounds.clone());
    }

    /// Each as what is paid, and how much.
    pub(crate) fn lines(&self) -> Vec<[String; 2]> {
        let line = |(price, rounds): (&Price, &Rounds)| {
            let (what, unit) = price.what();
            [what.to_owned(), format!("{rounds} {unit}")]
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_stand_in_their_order_and_only_those_that_were_measured() {
        let mut prices = Prices::default();
        let rounds = |value| Rounds::new(vec![value]).expect("a value");
        prices.set(Price::Packet, &rounds(5.0));
        prices.set(Price::Alive, &rounds(1.0));
        let lines = prices.lines();
        assert_eq!(lines.len(), 2);
        assert!(lines[0][0].starts_with("CPU time"), "{lines:?}");
        assert_eq!(lines[1][1], "5.00 (5.00 to 5.00) ns");
    }
}
