//! The worker over HTTP: routes, wire types, server-sent events.
