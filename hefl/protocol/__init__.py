"""What travels: records, frames and messages; and what a reader checks. No I/O."""
