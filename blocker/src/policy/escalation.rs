//! How bans grow with each offence: fail2ban's `bantime.increment` family, as numbers in and a length out.
#![forbid(unsafe_code)]

use std::{fmt, time::Duration};

use super::{Formula, Known};
use crate::time::{BanTime, span_text};

/// Most multipliers of one escalation.
pub const MULTIPLIERS_MAX: usize = 64;
/// No ban gets shorter than this, whatever was configured.
const BAN_MIN: Duration = Duration::from_secs(1);
/// Earlier bans beyond which a failure weighs no more: fail2ban's own bound on the shift.
const WEIGHT_SHIFT_MAX: u32 = 20;

/// How a ban of somebody who was banned before is longer.
#[derive(Clone, Debug, PartialEq)]
pub struct Escalation {
    /// Scales every step; 1 by default.
    pub factor: f64,
    /// What the ban time is multiplied by, by the number of earlier bans; beyond the end the last one holds. Empty:
    /// the formula decides.
    pub multipliers: Vec<u32>,
    /// Where there are no multipliers. It never makes a ban shorter.
    pub formula: Formula,
    /// No ban gets longer than this, but for the random part.
    pub maxtime: Option<Duration>,
    /// Up to so much is added at random, so that nobody knows when to come back.
    pub rndtime: Duration,
    /// Whether bans by other jails count as earlier bans.
    pub overalljails: bool,
}

impl Default for Escalation {
    fn default() -> Self {
        Self {
            factor: 1.0,
            multipliers: Vec::new(),
            formula: Formula::doubling(),
            maxtime: None,
            rndtime: Duration::ZERO,
            overalljails: false,
        }
    }
}

impl fmt::Display for Escalation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.multipliers.is_empty() {
            write!(f, "{}", self.formula)?;
        } else {
            let multipliers: Vec<String> = self.multipliers.iter().map(ToString::to_string).collect();
            write!(f, "times {}", multipliers.join(", "))?;
        }
        if self.factor != 1.0 {
            write!(f, "; factor {}", self.factor)?;
        }
        if let Some(most) = self.maxtime {
            write!(f, "; at most {}", span_text(most))?;
        }
        if !self.rndtime.is_zero() {
            write!(f, "; up to {} more at random", span_text(self.rndtime))?;
        }
        if self.overalljails { f.write_str("; bans by all jails count") } else { Ok(()) }
    }
}

impl Escalation {
    /// How long a ban lasts after `count` earlier ones. `random` is evenly distributed over all its values.
    ///
    /// As in fail2ban the first ban is just `bantime`, and so is a later one where the formula comes to no number.
    pub fn ban_time(&self, bantime: BanTime, count: u32, random: u32) -> BanTime {
        let BanTime::For(base) = bantime else { return bantime };
        if count == 0 {
            return bantime;
        }
        let time = base.as_secs_f64();
        let grown = match self.multipliers.last() {
            Some(last) => {
                let index = usize::try_from(count).unwrap_or(usize::MAX);
                let multiplier = *self.multipliers.get(index).unwrap_or(last);
                Some(time * self.factor * f64::from(multiplier))
            }
            None => self
                .formula
                .evaluate(Known { time, count: f64::from(count), factor: self.factor })
                .map(|grown| grown.max(time)),
        };
        let Some(grown) = grown.filter(|grown| grown.is_finite()) else { return bantime };
        // Longer than any clock counts is as long as it counts.
        let grown = Duration::try_from_secs_f64(grown.max(0.0)).unwrap_or(Duration::MAX);
        let grown = self.maxtime.map_or(grown, |most| grown.min(most));
        let random = self.rndtime.mul_f64(f64::from(random) / (f64::from(u32::MAX) + 1.0));
        BanTime::For(grown.saturating_add(random).max(BAN_MIN))
    }

    /// How many failures one failure of somebody counts for whom this jail banned `count` times before: fail2ban's
    /// 1, 2, 3, 5, 9 and so on, at most `maxretry`.
    pub fn weight(count: u32, maxretry: u32) -> u32 {
        if count == 0 {
            return 1;
        }
        (1_u32 << (count.min(WEIGHT_SHIFT_MAX) - 1)).saturating_add(1).min(maxretry).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> BanTime {
        BanTime::For(Duration::from_secs(secs))
    }

    /// What fail2ban's `man jail.conf` and jail.conf document: the numbers are theirs, by count of earlier bans.
    #[test]
    fn bans_grow_as_fail2ban_documents() {
        let formula =
            |text: &str| Escalation { formula: Formula::parse(text).unwrap(), ..Escalation::default() };
        let multipliers = |list: &[u32]| Escalation { multipliers: list.to_vec(), ..Escalation::default() };
        let aggressive = "ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)";
        let day = Some(Duration::from_secs(86_400));
        let cases: [(&str, Escalation, u64, &[u64]); 8] = [
            ("doubling", Escalation::default(), 600, &[600, 1_200, 2_400, 4_800, 9_600, 19_200]),
            (
                "factor 2",
                Escalation { factor: 2.0, ..Escalation::default() },
                600,
                &[600, 2_400, 4_800, 9_600],
            ),
            // With the factor that jail.conf names for it, the exponential doubles, too.
            (
                "exponential",
                Escalation { factor: 2.0 / 2.885_385, ..formula(aggressive) },
                600,
                &[600, 1_200, 2_400, 4_800, 9_600],
            ),
            (
                "multipliers",
                multipliers(&[1, 2, 4, 8, 16, 32, 64]),
                600,
                &[600, 1_200, 2_400, 4_800, 9_600, 19_200, 38_400, 38_400, 38_400],
            ),
            (
                "minutes",
                multipliers(&[1, 5, 30, 60, 300, 720, 1_440, 2_880]),
                60,
                &[60, 300, 1_800, 3_600, 18_000, 43_200, 86_400, 172_800, 172_800],
            ),
            (
                "maxtime",
                Escalation { maxtime: day, ..Escalation::default() },
                36_000,
                &[36_000, 72_000, 86_400, 86_400],
            ),
            ("never shorter", formula("ban.Time / 10"), 600, &[600, 600]),
            ("no number", formula("ban.Time / (ban.Count - 2)"), 600, &[600, 600, 600, 600]),
        ];
        for (name, escalation, base, expected) in cases {
            for (count, expected) in expected.iter().enumerate() {
                let count = u32::try_from(count).unwrap();
                let BanTime::For(span) = escalation.ban_time(secs(base), count, 0) else { panic!("{name}") };
                assert!(span.as_secs_f64().round() as u64 == *expected, "{name}, {count}: {span:?}");
            }
        }
    }

    #[test]
    fn the_shift_ends_at_twenty_and_nothing_overflows() {
        let doubling = Escalation::default();
        assert_eq!(doubling.ban_time(secs(600), 20, 0), doubling.ban_time(secs(600), u32::MAX, 0));
        let huge = Escalation { factor: 1e200, rndtime: Duration::from_secs(9), ..Escalation::default() };
        assert_eq!(huge.ban_time(secs(u64::MAX), 20, u32::MAX), BanTime::For(Duration::MAX));
        assert_eq!(huge.ban_time(BanTime::Permanent, 20, 0), BanTime::Permanent);
        let none = Escalation { factor: -1.0, multipliers: vec![0, 0], ..Escalation::default() };
        assert_eq!(none.ban_time(secs(600), 1, 0), secs(1));
    }

    #[test]
    fn the_random_part_is_below_rndtime_and_beyond_maxtime() {
        let escalation = Escalation {
            maxtime: Some(Duration::from_secs(1_000)),
            rndtime: Duration::from_secs(100),
            ..Escalation::default()
        };
        let span = |random| match escalation.ban_time(secs(600), 1, random) {
            BanTime::For(span) => span,
            BanTime::Permanent => panic!(),
        };
        assert_eq!(span(0), Duration::from_secs(1_000));
        assert_eq!(span(1 << 31), Duration::from_secs(1_050));
        assert!(span(u32::MAX) > Duration::from_secs(1_099) && span(u32::MAX) < Duration::from_secs(1_100));
        // The first ban is as long as the jail says.
        assert_eq!(escalation.ban_time(secs(600), 0, u32::MAX), secs(600));
    }

    #[test]
    fn failures_of_a_known_offender_weigh_more() {
        let weights: Vec<u32> = (0..7).map(|count| Escalation::weight(count, 10)).collect();
        assert_eq!(weights, [1, 2, 3, 5, 9, 10, 10]);
        assert_eq!(Escalation::weight(u32::MAX, 3), 3);
        assert_eq!(Escalation::weight(5, 1), 1);
    }
}
