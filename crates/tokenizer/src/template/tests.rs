//! What templates may say and may not do. The published templates are rendered in `tests/templates.rs`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn render_with(source: &str, extra: serde_json::Value) -> Result<String, TemplateError> {
    let serde_json::Value::Object(extra) = extra else { panic!("variables are an object") };
    let clock = || chrono::DateTime::UNIX_EPOCH.into();
    ChatTemplate::with_clock(source, "<s>", "</s>", clock)?.render(&ChatInput { extra, ..ChatInput::default() })
}

fn render(source: &str) -> Result<String, TemplateError> {
    render_with(source, json!({}))
}

#[track_caller]
fn check(source: &str, extra: serde_json::Value, expected: &str) {
    assert_eq!(render_with(source, extra).unwrap(), expected, "{source}");
}

#[test]
fn blocks_leave_no_lines_behind() {
    check("  {% if true %}\n  a\n  {% endif %}\nb\n", json!({}), "  a\nb");
}

#[test]
fn values_are_written_as_python_writes_them() {
    let values = json!([true, false, null, 1, -2.0, 1e16, 1.5e-7, 0.0001, "a'b", "a\"b", "\n\\", {"k": [1, "x"]}, []]);
    check(
        "{{ v }}",
        json!({ "v": values }),
        r#"[True, False, None, 1, -2.0, 1e+16, 1.5e-07, 0.0001, "a'b", 'a"b', '\n\\', {'k': [1, 'x']}, []]"#,
    );
    check("{{ true }} {{ none }} {{ 2.0 }} {{ x }}|{{ [x] | string }}", json!({}), "True None 2.0 |[Undefined]");
}

#[test]
fn tojson_is_json_dumps() {
    let value = json!({"b": [1, 2.50, 1e22], "a": "<é\n\u{1}\u{1F600}>", "e": [], "m": {}, "n": null, "t": true});
    let check = |source: &str, expected: &str| check(source, json!({ "v": value }), expected);
    check(
        "{{ v | tojson }}",
        "{\"b\": [1, 2.5, 1e+22], \"a\": \"<é\\n\\u0001\u{1F600}>\", \"e\": [], \"m\": {}, \"n\": null, \"t\": true}",
    );
    check("{{ v['a'] | tojson(ensure_ascii=true) }}", r#""<\u00e9\n\u0001\ud83d\ude00>""#);
    check("{{ [1, {'a': 2}, []] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": 2\n  },\n  []\n]");
    check("{{ v.b | tojson(separators=(',', ':')) }}", "[1,2.5,1e+22]");
    check("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#);
    check("{{ {1: 1, none: 2} | tojson }}", r#"{"1": 1, "null": 2}"#);
    assert!(matches!(render("{{ x | tojson }}"), Err(TemplateError::Failed { .. })), "undefined is not JSON");
}

#[test]
fn python_methods_work_on_strings_and_dictionaries() {
    check("{{ ' a,b '.strip().split(',')[-1].upper() }}", json!({}), "B");
    check(
        "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.get('z', 1) }}",
        json!({"d": {"x": 1}}),
        "x=1;1",
    );
    check("{{ 'ab'.startswith('a') }}{{ 'x' in 'xy' }}{{ 'a' ~ 1 }}", json!({}), "TrueTruea1");
}

#[test]
fn loops_may_break_and_mark_what_was_generated() {
    check("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", json!({}), "01");
    check("a\n{%- generation %}\nb{%- endgeneration -%}\n c", json!({}), "abc");
}

#[test]
fn special_tokens_tools_and_extra_variables_are_there() {
    check(
        "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ add_generation_prompt }}",
        json!({}),
        "<s></s>TrueFalse",
    );
    check("{{ enable_thinking is defined }}{{ tools }}", json!({"enable_thinking": false, "tools": 1}), "True1");
}

#[test]
fn the_time_is_written_as_asked() {
    // The zone is the machine's, so only what no zone changes by more than a day.
    let text = render("{{ strftime_now('%B, %Y; 100%%') }}").unwrap();
    assert!(text == "January, 1970; 100%" || text == "December, 1969; 100%", "{text}");
    for bad in ["%Q", "%", "%é"] {
        assert!(matches!(render(&format!("{{{{ strftime_now('{bad}') }}}}")), Err(TemplateError::Failed { .. })));
    }
}

#[test]
fn raising_gives_the_templates_words() {
    let raised = render("a{% for i in [1] %}{{ raise_exception('Roles must alternate, not ' ~ i) }}{% endfor %}");
    assert_eq!(raised, Err(TemplateError::Raised { message: "Roles must alternate, not 1".to_owned() }));
}

#[test]
fn errors_name_the_line_but_not_the_conversation() {
    let message = |result: Result<String, TemplateError>| result.unwrap_err().to_string();
    insta::assert_snapshot!(message(render("a\n{% if %}")));
    insta::assert_snapshot!(message(render_with("\n\n{{ m.a.b }}", json!({"m": {"secret": "x"}}))));
    insta::assert_snapshot!(message(render("{{ nothing() }}")));
    insta::assert_snapshot!(message(render("{% include 'other' %}")));
    insta::assert_snapshot!(message(
        ChatTemplate::new(&" ".repeat(MAX_TEMPLATE_BYTES + 1), "", "").map(|_| String::new())
    ));
}

/// `n.s` is a list that holds one list twice, and so on: 2 to the 64th items to whoever walks it.
fn shared(expression: &str) -> String {
    let steps = "{% for i in range(64) %}{% set n.s = [n.s, n.s] %}{% endfor %}";
    format!("{{% set n = namespace(s=[1]) %}}{steps}{{{{ {expression} }}}}")
}

/// Evaluates an expression where `n.s` is a list nested 400,000 deep, about as deep as fuel lasts.
fn deep(expression: &str) -> String {
    let nested = format!("{}n.s{}", "[".repeat(40), "]".repeat(40));
    let steps = "{% for i in range(100) %}{% for j in range(100) %}{% set n.s = NESTED %}{% endfor %}{% endfor %}";
    let steps = steps.replace("NESTED", &nested);
    format!("{{% set n = namespace(s=[1]) %}}{steps}{{{{ {expression} }}}}")
}

/// Templates that would run for ever, fill the memory or overrun the stack.
#[test]
fn no_template_hangs_the_worker() {
    let range = "{% for a in range(9999) %}";
    let endless = format!("{}{}", range.repeat(3), "{% endfor %}".repeat(3));
    let hostile = [
        ("endless loops", endless.clone()),
        (
            "doubling text",
            "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}".into(),
        ),
        ("repeated text", "{{ 'x' * 99999999999 }}".into()),
        (
            "much text",
            format!("{{% set n = namespace(s=[]) %}}{range}{{% set n.s = n.s + ['x' * 1000000] %}}{{% endfor %}}"),
        ),
        ("a shared list, written", shared("n.s")),
        ("a shared list, as JSON", shared("n.s | tojson(indent=4)")),
        ("a deep list, dropped", deep("1")),
        ("a deep list, written", deep("n.s")),
        ("a deep list, joined to text", deep("n.s ~ ''")),
        ("a deep list, as JSON", deep("n.s | tojson(indent=4)")),
        ("a deep list, compared", deep("n.s == [n.s]")),
        ("a macro that calls itself", "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("deep brackets", format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000))),
    ];
    for (what, source) in &hostile {
        let begin = Instant::now();
        let result = render(source).map(|text| text.len());
        let took = begin.elapsed();
        println!("{what}: {took:?}, {result:?}");
        assert!(took < Duration::from_secs(20), "{what} took {took:?}");
    }
    assert_eq!(render(&endless), Err(TemplateError::TooExpensive { limit: FUEL }));
    assert_eq!(
        render(&format!("{range}{{{{ 'x' * 10000 }}}}{{% endfor %}}")),
        Err(TemplateError::TextTooLong { limit: MAX_RENDERED_BYTES }),
    );
}
