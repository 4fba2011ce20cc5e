//! How large each record is.

use std::str::FromStr;

/// Largest record that the bench tool makes, bytes.
const LARGEST: usize = 64 * 1024 * 1024;

/// A distribution of record sizes, bytes: `100`, `uniform:10-1000` or `mix:100x90,10000x10` (size x weight).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sizes {
    text: String,
    choices: Vec<Choice>,
    weights: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Choice {
    smallest: usize,
    largest: usize,
    weight: u64,
}

/// A distribution that is none.
#[derive(Debug, thiserror::Error)]
#[error("a size is BYTES, uniform:LEAST-MOST or mix:BYTESxWEIGHT,..., each at most {LARGEST}, not {0:?}")]
pub struct InvalidSizes(String);

impl Sizes {
    /// All the same.
    pub fn fixed(bytes: usize) -> Sizes {
        Sizes { text: bytes.to_string(), choices: vec![Choice { smallest: bytes, largest: bytes, weight: 1 }], weights: 1 }
    }

    /// The size that a random number picks.
    pub fn pick(&self, random: u64) -> usize {
        let mut at = random % self.weights;
        for choice in &self.choices {
            if at < choice.weight {
                let span = (choice.largest - choice.smallest) as u64 + 1;
                return choice.smallest + ((random >> 20) % span) as usize;
            }
            at -= choice.weight;
        }
        unreachable!("the weights add up")
    }

    /// The largest possible size, bytes.
    pub fn largest(&self) -> usize {
        self.choices.iter().map(|choice| choice.largest).max().unwrap_or(0)
    }
}

impl FromStr for Sizes {
    type Err = InvalidSizes;

    fn from_str(text: &str) -> Result<Sizes, InvalidSizes> {
        let invalid = || InvalidSizes(text.to_string());
        let bytes = |word: &str| word.parse::<usize>().ok().filter(|bytes| *bytes <= LARGEST).ok_or_else(invalid);
        let choices = if let Some(range) = text.strip_prefix("uniform:") {
            let (least, most) = range.split_once('-').ok_or_else(invalid)?;
            vec![Choice { smallest: bytes(least)?, largest: bytes(most)?, weight: 1 }]
        } else if let Some(mix) = text.strip_prefix("mix:") {
            let choice = |part: &str| {
                let (size, weight) = part.split_once('x').ok_or_else(invalid)?;
                let weight = weight.parse::<u32>().ok().filter(|weight| *weight > 0).ok_or_else(invalid)?;
                Ok(Choice { smallest: bytes(size)?, largest: bytes(size)?, weight: weight.into() })
            };
            mix.split(',').map(choice).collect::<Result<Vec<_>, InvalidSizes>>()?
        } else {
            vec![Choice { smallest: bytes(text)?, largest: bytes(text)?, weight: 1 }]
        };
        if choices.iter().any(|choice| choice.smallest > choice.largest) {
            return Err(invalid());
        }
        let weights = choices.iter().map(|choice| choice.weight).sum();
        Ok(Sizes { text: text.to_string(), choices, weights })
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::random::Random;

    #[test]
    fn sizes_stay_in_their_distribution() {
        let mut random = Random::new(1);
        let uniform: Sizes = "uniform:10-12".parse().unwrap();
        let mut seen = [0; 13];
        (0..3000).for_each(|_| seen[uniform.pick(random.next())] += 1);
        assert!(seen[10..].iter().all(|count| *count > 800), "{seen:?}");
        let mix: Sizes = "mix:100x9,1000x1".parse().unwrap();
        let large = (0..10_000).filter(|_| mix.pick(random.next()) == 1000).count();
        assert!((800..1200).contains(&large), "{large}");
        assert_eq!(mix.largest(), 1000);
        assert_eq!("100".parse::<Sizes>().unwrap(), Sizes::fixed(100));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for text in ["", "x", "-1", "uniform:9", "uniform:9-1", "mix:", "mix:1x0", "mix:1", "99999999999"] {
            assert!(text.parse::<Sizes>().is_err(), "{text:?}");
        }
    }
}
