//! Counts test results in the output of the test executables.

/// The numbers of results, and the list of failures, of all test executables.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) ignored: usize,
    failures: Vec<Failure>,
    current: CurrentExecutable,
}

/// The executable that is running.
#[derive(Debug, Default)]
struct CurrentExecutable {
    name: String,
    /// Whether the executable has printed its result line, or its failure was counted.
    reported_result: bool,
    /// Number of its failures.
    failed: usize,
}

/// A failed test, or an executable that failed as a whole.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    executable: String,
    /// The failed test; `None` if the executable failed.
    test: Option<String>,
    /// Why the executable failed; empty for a test.
    error: &'static str,
}

impl Tally {
    /// Starts the count of an executable.
    pub(super) fn begin(&mut self, name: &str) {
        self.current = CurrentExecutable { name: name.to_owned(), ..CurrentExecutable::default() };
    }

    /// Counts the results in a line of output. Returns whether to print the line.
    pub(super) fn line(&mut self, line: &str) -> bool {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |word: &str| number_before(counts, word);
            self.passed += count("passed");
            self.failed += count("failed");
            self.ignored += count("ignored");
            self.current.failed += count("failed");
            self.current.reported_result = true;
            return count("passed") + count("failed") > 0;
        }
        if let Some(test) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            let failure = Failure { executable: self.current.name.clone(), test: Some(test.to_owned()), error: "" };
            self.failures.push(failure);
        }
        !line.is_empty() && line != "running 0 tests"
    }

    /// Counts an executable that hung and was stopped.
    pub(super) fn hung(&mut self) {
        self.fail_executable("hung and was stopped");
        // So that `end` does not count the executable again.
        self.current.reported_result = true;
        self.current.failed += 1;
    }

    /// Ends the count of an executable. `success` is whether its exit status is 0.
    pub(super) fn end(&mut self, success: bool) {
        if !self.current.reported_result {
            self.fail_executable("ended without a result: it crashed or does not compile");
        } else if !success && self.current.failed == 0 {
            self.fail_executable("ended with an error after its tests");
        }
    }

    fn fail_executable(&mut self, error: &'static str) {
        self.failed += 1;
        self.failures.push(Failure { executable: self.current.name.clone(), test: None, error });
    }

    /// Returns one line for each failure.
    pub(super) fn failures(&self) -> impl Iterator<Item = String> {
        self.failures.iter().map(|failure| match &failure.test {
            Some(test) => format!("{}: {test}", failure.executable),
            None => format!("{} {}", failure.executable, failure.error),
        })
    }

    /// Returns the first failed test. After the tests, a message shows the command that runs it again.
    pub(super) fn first_failed_test(&self) -> Option<&str> {
        self.failures.iter().find_map(|failure| failure.test.as_deref())
    }
}

/// Returns the number before a word: `3` for `failed` in `ok. 12 passed; 3 failed; …`.
fn number_before(counts: &str, word: &str) -> usize {
    let words: Vec<_> = counts.split([' ', ';']).filter(|part| !part.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_after(lines: &[&str], success: bool) -> Tally {
        let mut tally = Tally::default();
        tally.begin("x");
        for line in lines {
            tally.line(line);
        }
        tally.end(success);
        tally
    }

    #[test]
    fn results_are_summed() {
        let result =
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        let tally = tally_after(&["test a::b ... FAILED", "test c ... ok", result], false);
        assert_eq!((tally.passed, tally.failed, tally.ignored), (2, 1, 1));
        assert_eq!(tally.failures().collect::<Vec<_>>(), ["x: a::b"]);
        assert_eq!(tally.first_failed_test(), Some("a::b"));
    }

    #[test]
    fn an_executable_that_reports_no_result_or_exits_with_an_error_fails() {
        let ok = "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        for (lines, success, failed) in
            [(&[ok][..], true, 0), (&[][..], true, 1), (&["test a ... ok"][..], false, 1), (&[ok][..], false, 1)]
        {
            assert_eq!(tally_after(lines, success).failed, failed, "{lines:?} {success}");
        }
    }

    #[test]
    fn an_executable_that_hangs_fails_once() {
        let mut tally = Tally::default();
        tally.begin("x");
        tally.hung();
        tally.end(false);
        assert_eq!(tally.failed, 1);
    }
}
