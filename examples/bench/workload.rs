//! Which keys are asked for, and in what order. All is drawn before a clock runs.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

/// The same requests in every run of the bench.
pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Numbered keys of one length, side by side in memory: finding a key costs little beside
/// looking it up.
pub(crate) struct Keys {
    text: String,
    width: usize,
}

impl Keys {
    pub(crate) fn new(count: usize, width: usize) -> Self {
        Self { text: (0..count).map(|i| format!("{i:0width$}")).collect(), width }
    }

    pub(crate) fn get(&self, i: u32) -> &str {
        let start = i as usize * self.width;
        &self.text[start..start + self.width]
    }
}

/// `requests` keys of `population`, the one of rank `r` with a probability that falls as
/// `r^-exponent`. Ranks are scattered over the keys, in the same way for every `rng`.
pub(crate) fn zipf(
    rng: &mut StdRng,
    population: usize,
    exponent: f64,
    requests: usize,
) -> Vec<u32> {
    let keys = scattered(population);
    ranks(rng, population, exponent, requests).into_iter().map(|rank| keys[rank]).collect()
}

/// Draws from the distribution of [`zipf`], as ranks from 0.
pub(crate) fn ranks(
    rng: &mut StdRng,
    population: usize,
    exponent: f64,
    requests: usize,
) -> Vec<usize> {
    let zipf = Zipf::new(population as f64, exponent).expect("a population and an exponent");
    (0..requests).map(|_| zipf.sample(rng) as usize - 1).collect()
}

pub(crate) fn uniform(rng: &mut StdRng, population: usize, requests: usize) -> Vec<u32> {
    (0..requests).map(|_| rng.random_range(0..population as u32)).collect()
}

/// All keys of `population` in an order that says nothing, always the same.
pub(crate) fn scattered(population: usize) -> Vec<u32> {
    let mut keys: Vec<u32> = (0..population as u32).collect();
    keys.shuffle(&mut rng(population as u64));
    keys
}
