//! Datasets in the formats that users have: JSONL and Parquet, normalised to one row type.
