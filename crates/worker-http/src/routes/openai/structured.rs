//! Answers of a given structure, and tools: fields that are known here, checked here, and not supported yet.

use crate::fields::Fields;

/// Every field that asks for structure.
pub(super) const FIELDS: &[&str] = &[
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "grammar",
    "json_schema",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structural_tag",
];

/// Refuses by name what asks for structure, and lets pass what says that none is wanted.
pub(super) fn read(fields: &mut Fields<'_>) {
    let known = ["text", "json_object", "json_schema"];
    let format = fields.object("response_format", &["type"], |fields| match fields.raw("type") {
        Some(_) => fields.one_of("type", &known),
        None => {
            fields.fault("type", "required", "expected a string, got nothing", None);
            None
        }
    });
    if format.is_some_and(|format| format != "text") {
        fields.fault("response_format", "unsupported", "only {\"type\": \"text\"} is supported", None);
    }
    for &field in &FIELDS[1..] {
        let Some(raw) = fields.raw(field) else { continue };
        let asks_for_nothing = match field {
            "parallel_tool_calls" => true,
            "tool_choice" | "function_call" => raw.get() == "\"none\"",
            "tools" | "functions" => raw.get().trim_matches(['[', ']']).trim().is_empty(),
            _ => false,
        };
        if !asks_for_nothing {
            fields.fault(field, "unsupported", "not supported", None);
        }
    }
}
