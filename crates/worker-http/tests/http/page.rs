//! The page's files. What the page does is tested in a browser: `cargo xtask test --browser`.

use reqwest::{Method, StatusCode};

use crate::worker::Worker;

const FILES: [(&str, &str); 5] = [
    ("/", "text/html; charset=utf-8"),
    ("/page/style.css", "text/css; charset=utf-8"),
    ("/page/app.js", "text/javascript; charset=utf-8"),
    ("/page/client.js", "text/javascript; charset=utf-8"),
    ("/page/icon.svg", "image/svg+xml"),
];

#[tokio::test]
async fn every_file_has_its_type_and_a_policy_that_allows_nothing_from_elsewhere() {
    let worker = Worker::start().await;
    for (path, content_type) in FILES {
        let answer = worker.get(path).await;
        let headers = answer.headers().clone();
        assert_eq!((answer.status(), &headers["content-type"]), (StatusCode::OK, &content_type.parse().unwrap()));
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!([&headers["x-content-type-options"], &headers["cache-control"]], ["nosniff", "no-cache"]);
        let text = answer.text().await.unwrap();
        // What namespaces are called is no address.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://") && !text.contains("innerHTML"), "{path}");
    }
}

#[tokio::test]
async fn the_page_refers_to_files_that_are_there() {
    let worker = Worker::start().await;
    let page = worker.get("/").await.text().await.unwrap();
    let script = worker.get("/page/app.js").await.text().await.unwrap();
    let named = |text: &str, before: &str| -> Vec<String> {
        text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
    };
    let mut paths = [named(&page, "href=\""), named(&page, "src=\"")].concat();
    paths.extend(named(&script, "from \"./").into_iter().map(|name| format!("page/{name}")));
    assert_eq!(paths.len(), 5, "{paths:?}");
    for path in paths {
        assert_eq!(worker.get(&format!("/{path}")).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_file_that_the_browser_has_is_not_sent_again() {
    let worker = Worker::start().await;
    for (path, _) in FILES {
        let tag = worker.get(path).await.headers()["etag"].to_str().unwrap().to_string();
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("\"other\", W/{tag}"), StatusCode::NOT_MODIFIED),
            ("*".into(), StatusCode::NOT_MODIFIED),
            ("\"other\"".into(), StatusCode::OK),
        ] {
            let request = worker.client.get(format!("{}{path}", worker.url)).header("if-none-match", &known);
            let answer = request.send().await.unwrap();
            assert_eq!((answer.status(), &answer.headers()["etag"]), (status, &tag.parse().unwrap()), "{known}");
            assert_eq!(answer.bytes().await.unwrap().is_empty(), status == StatusCode::NOT_MODIFIED);
        }
    }
}

#[tokio::test]
async fn files_answer_to_get_and_head_alone() {
    let worker = Worker::start().await;
    for (path, _) in FILES {
        let ask = |method| worker.client.request(method, format!("{}{path}", worker.url)).send();
        let head = ask(Method::HEAD).await.unwrap();
        assert_eq!((head.status(), head.headers().contains_key("etag")), (StatusCode::OK, true));
        assert!(head.bytes().await.unwrap().is_empty());
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let refused = ask(method).await.unwrap();
            assert_eq!(
                (refused.status(), refused.headers()["allow"].to_str().unwrap()),
                (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD")
            );
        }
    }
}
