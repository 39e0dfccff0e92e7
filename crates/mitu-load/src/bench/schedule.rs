//! When what begins: moments after the start of a run, in order.

use std::time::Duration;

use super::plan::{Arrivals, Pace, Plan, Storm, Work};
use super::random::Random;

/// Ends where the run's bounds are.
pub struct Schedule {
    moments: Box<dyn Iterator<Item = f64> + Send>,
}

impl Schedule {
    /// None: the pace is that of the answers.
    pub fn of(plan: &Plan) -> Option<Self> {
        let random = Random::new(plan.seed);
        let moments: Box<dyn Iterator<Item = f64> + Send> = match plan.work {
            Work::Handshakes { pace, .. } | Work::Requests { pace, .. } => match pace {
                Pace::Closed { .. } => return None,
                Pace::Open { from, to, arrivals } => Box::new(rate(from, to, plan.seconds, arrivals, random)),
            },
            Work::Storm(storm) => Box::new(spread(&storm, random)),
        };
        let seconds = plan.seconds;
        let count = usize::try_from(plan.count).unwrap_or(usize::MAX);
        Some(Self { moments: Box::new(moments.take_while(move |moment| *moment < seconds).take(count)) })
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.moments.next().map(Duration::from_secs_f64)
    }
}

/// The `n`th arrival is when the integral of the rate, which is linear in time, has come to `n`; to the sum of `n`
/// exponential gaps if arrivals are a Poisson process.
fn rate(from: f64, to: f64, seconds: f64, arrivals: Arrivals, mut random: Random) -> impl Iterator<Item = f64> + Send {
    let slope = (to - from) / (2.0 * seconds);
    let mut sum = if arrivals == Arrivals::Fixed { 0.0 } else { random.gap() };
    std::iter::from_fn(move || {
        // Solved for the time in the form that stays exact when the slope is 0.
        let root = from * from + 4.0 * slope * sum;
        let moment = if sum == 0.0 { 0.0 } else { 2.0 * sum / (from + root.sqrt()) };
        sum += if arrivals == Arrivals::Fixed { 1.0 } else { random.gap() };
        (root >= 0.0 && moment.is_finite()).then_some(moment)
    })
}

/// Each device picks its moment independently.
fn spread(storm: &Storm, mut random: Random) -> impl Iterator<Item = f64> + Send + use<> {
    let within = storm.within;
    let mut moments: Vec<f64> = (0..storm.devices).map(|_| random.share() * within).collect();
    moments.sort_by(f64::total_cmp);
    moments.into_iter()
}

#[cfg(test)]
mod tests {
    use super::super::plan::Retry;
    use super::*;

    fn arrivals(from: f64, to: f64, seconds: f64, arrivals: Arrivals) -> Vec<f64> {
        rate(from, to, seconds, arrivals, Random::new(7)).take_while(|moment| *moment < seconds).collect()
    }

    #[test]
    fn a_fixed_rate_is_even() {
        let moments = arrivals(10.0, 10.0, 1.0, Arrivals::Fixed);
        assert_eq!(moments.len(), 10);
        assert!(moments.windows(2).all(|pair| (pair[1] - pair[0] - 0.1).abs() < 1e-9));
    }

    #[test]
    fn a_ramp_makes_as_many_as_lie_below_it() {
        for (from, to) in [(0.0, 200.0), (200.0, 0.0)] {
            let moments = arrivals(from, to, 10.0, Arrivals::Fixed);
            assert!((999..=1001).contains(&moments.len()), "{}", moments.len());
            let early = moments.iter().filter(|moment| **moment < 5.0).count();
            assert!(early.abs_diff(if from < to { 250 } else { 750 }) <= 1, "{early}");
        }
    }

    #[test]
    fn poisson_gaps_vary_as_much_as_they_last() {
        let moments = arrivals(1000.0, 1000.0, 20.0, Arrivals::Poisson);
        let gaps: Vec<f64> = moments.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 1000.0 - 1.0).abs() < 0.05, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{variance}");
    }

    #[test]
    fn devices_are_spread_over_the_time_or_come_at_once() {
        let retry = Retry { base: 1.0, cap: 1.0, attempts: 1 };
        let mut storm = Storm { devices: 1000, within: 10.0, hold: false, retry };
        let moments: Vec<f64> = spread(&storm, Random::new(1)).collect();
        assert!(moments.is_sorted() && moments[999] < 10.0);
        assert!(moments.iter().filter(|moment| **moment < 5.0).count().abs_diff(500) < 60);
        storm.within = 0.0;
        assert!(spread(&storm, Random::new(1)).all(|moment| moment == 0.0));
    }
}
