//! Verdicts in words: who allows, who isolates, which rule came nearest and what it lacked.
