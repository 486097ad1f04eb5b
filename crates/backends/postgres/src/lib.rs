//! The PostgreSQL backend of Commonhold.
