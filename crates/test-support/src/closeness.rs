//! How close logits are to a reference's, and how close they have to be.

/// The largest relative 2-norm errors.
#[derive(Debug, Clone, Copy)]
pub struct Gates {
    /// Of all logits together.
    pub run: f64,
    /// Of one position's logits, or of one step's values there. With an F16 cache single positions scatter to six times the
    /// run's error: a few keys of nearly equal scores decide them.
    pub one: f64,
}

impl Gates {
    /// F32's own rounding is the only error.
    pub const CPU_F32: Gates = Gates { run: 1e-4, one: 1e-4 };
    /// An F16 cache rounds each key and value to 11 bits.
    pub const CPU_F16: Gates = Gates { run: 5e-4, one: 2e-3 };
    /// So does the GPU's, and activations that enter a product are rounded to 11 bits too.
    pub const CUDA: Gates = Gates { run: 1e-3, one: 4e-3 };
    /// The same, through four times as many layers and more.
    pub const CUDA_FULL_SIZE: Gates = Gates { run: 5e-3, one: 5e-3 };
}

/// The largest mean absolute difference of log-probabilities.
pub const MAX_MEAN_LOGPROB_ERROR: f64 = 0.01;

/// The largest share of positions whose greedy choice may be left unchecked, because the reference's lead of the best
/// over the second is within twice the error.
pub const MAX_EXEMPT: f64 = 0.02;

/// The reference's best tokens among which the error is measured that a lead is compared with: those that could be chosen.
const N_BEST: usize = 20;

/// How far one position's logits are from the reference's.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// Relative 2-norm error.
    pub error: f64,
    /// Mean absolute difference of log-probabilities.
    pub mean_logprob_error: f64,
    /// By how much the reference prefers its best token to the second.
    pub lead: f64,
    /// The largest absolute error of the reference's best twenty logits.
    pub best_error: f64,
    /// Whether the greedy choice is the reference's.
    pub same_choice: bool,
}

impl Position {
    /// Compares `[n_vocab]` with the reference.
    pub fn of(got: &[f32], want: &[f32]) -> Self {
        let (got_lp, want_lp) = (log_softmax(got), log_softmax(want));
        let sum: f64 = got_lp.iter().zip(&want_lp).map(|(g, w)| (g - w).abs()).sum();
        let best = best(want, N_BEST);
        let error = |&i: &usize| (f64::from(got[i]) - f64::from(want[i])).abs();
        Self {
            error: relative_error(got, want),
            mean_logprob_error: sum / got.len() as f64,
            lead: best.get(1).map_or(f64::INFINITY, |&second| f64::from(want[best[0]]) - f64::from(want[second])),
            best_error: best.iter().map(error).fold(0.0, f64::max),
            same_choice: argmax(got) == best[0],
        }
    }

    /// Whether the reference's two best are too close to tell apart.
    pub fn is_exempt(&self) -> bool {
        self.lead <= 2.0 * self.best_error
    }

    /// Whether another token is chosen although the reference's lead is clear.
    pub fn differs(&self) -> bool {
        !self.same_choice && !self.is_exempt()
    }
}

/// How far a run's logits are from the reference's.
#[derive(Debug, Default, Clone)]
pub struct Closeness {
    /// Relative 2-norm error of all logits together.
    pub error: f64,
    /// The largest of one position; infinite where one is not a number.
    pub max_error: f64,
    /// Mean absolute difference of log-probabilities.
    pub mean_logprob_error: f64,
    /// How many positions were compared.
    pub n_positions: usize,
    /// Of them, those where the reference's two best are too close to tell apart.
    pub n_exempt: usize,
    /// Positions, of those not exempt, where the greedy choice differs.
    pub n_disagree: usize,
}

impl Closeness {
    /// Compares `[n_positions, n_vocab]` with the reference.
    ///
    /// # Panics
    /// If there are not as many logits in both.
    pub fn of(got: &[f32], want: &[f32], n_vocab: usize) -> Self {
        assert_eq!(got.len(), want.len());
        let rows = got.chunks_exact(n_vocab).zip(want.chunks_exact(n_vocab));
        let positions: Vec<Position> = rows.map(|(got, want)| Position::of(got, want)).collect();
        // `max` would pass over a NaN; an error that is not a number is as bad as can be.
        let worst = |max: f64, p: &Position| if p.error.is_nan() { f64::INFINITY } else { max.max(p.error) };
        let n = positions.len();
        Self {
            error: relative_error(got, want),
            max_error: positions.iter().fold(0.0, worst),
            mean_logprob_error: positions.iter().map(|p| p.mean_logprob_error).sum::<f64>() / n as f64,
            n_positions: n,
            n_exempt: positions.iter().filter(|p| p.is_exempt()).count(),
            n_disagree: positions.iter().filter(|p| p.differs()).count(),
        }
    }

    /// Whether all gates hold; `Err` says which does not.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self, gates: Gates) -> Result<(), String> {
        if self.error.is_nan() || self.error > gates.run {
            return Err(format!("logits are off by {:.1e}, the gate is {:.0e}", self.error, gates.run));
        }
        if self.max_error > gates.one {
            return Err(format!("a position is off by {:.1e}, the gate is {:.0e}", self.max_error, gates.one));
        }
        if self.mean_logprob_error.is_nan() || self.mean_logprob_error >= MAX_MEAN_LOGPROB_ERROR {
            return Err(format!("log-probabilities are off by {:.1e} on average", self.mean_logprob_error));
        }
        if self.n_disagree > 0 {
            return Err(format!("{} of {} greedy choices differ", self.n_disagree, self.n_positions));
        }
        Ok(())
    }
}

/// Whether few enough greedy choices are exempt; `Err` says how many are.
///
/// # Errors
/// In words.
pub fn check_exempt(n_exempt: usize, n_positions: usize) -> Result<(), String> {
    if (n_exempt as f64) < MAX_EXEMPT * n_positions as f64 {
        return Ok(());
    }
    Err(format!("{n_exempt} of {n_positions} greedy choices are exempt; fewer than {MAX_EXEMPT} of them may be"))
}

/// `|got - want| / |want|`, in double.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let size: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    (error / size).sqrt()
}

/// Natural logarithms of the softmax, in double.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().map(|&x| f64::from(x)).fold(f64::MIN, f64::max);
    let log_sum = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln();
    logits.iter().map(|&x| f64::from(x) - max - log_sum).collect()
}

/// The lowest index of the largest.
///
/// # Panics
/// If there is none.
pub fn argmax(values: &[f32]) -> usize {
    best(values, 1)[0]
}

/// Indices of the `n` largest, best first; of equal ones the lower first.
fn best(values: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let before = |&a: &usize, &b: &usize| values[b].total_cmp(&values[a]).then(a.cmp(&b));
    if n < order.len() {
        order.select_nth_unstable_by(n, before);
        order.truncate(n);
    }
    order.sort_unstable_by(before);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_best_in_order_and_the_lower_of_equals() {
        assert_eq!(best(&[1.0, 3.0, 2.0, 3.0, -1.0], 3), [1, 3, 2]);
        assert_eq!(best(&[2.0, 1.0], 20), [0, 1]);
        assert_eq!(argmax(&[-1.0, 0.5, 0.5]), 1);
    }

    #[test]
    fn another_choice_differs_only_where_the_lead_is_clear() {
        let want = [1.0, 0.9, -5.0];
        let close = Position::of(&[0.92, 0.96, -5.0], &want);
        assert!(!close.same_choice && close.is_exempt() && !close.differs());
        // A token that the reference thinks little of, beyond its best twenty, wins.
        let many: Vec<f32> = (0..30).map(|i| -(i as f32)).collect();
        let mut wrong = many.clone();
        wrong[25] = 1.0;
        let far = Position::of(&wrong, &many);
        assert!(far.differs() && far.best_error == 0.0 && far.lead == 1.0);
    }

    #[test]
    fn logits_that_are_not_numbers_fail() {
        let (want, nan) = ([1.0, 2.0, 3.0, 4.0], [1.0, f32::NAN, 3.0, 4.0]);
        assert!(Closeness::of(&want, &want, 2).check(Gates::CPU_F32).is_ok());
        assert!(Closeness::of(&nan, &want, 2).check(Gates::CUDA_FULL_SIZE).is_err());
        assert!(check_exempt(1, 50).is_err() && check_exempt(1, 51).is_ok() && check_exempt(0, 0).is_err());
    }
}
