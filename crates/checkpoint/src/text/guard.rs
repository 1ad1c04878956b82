//! Rewrites a template so that nothing grows unseen (see [`limits`]).
//!
//! minijinja has no hook for operators, so each one that can make something larger is wrapped in a filter, found by
//! its place in the syntax tree: `a ~ b` becomes `((((a)|_flat) ~ ((b)|_flat))|_spent)`. Lines stay where they are.

use minijinja::machinery::{Span, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::limits;

/// The filters that [`rewrite`] puts in.
pub(super) fn install(env: &mut Environment<'_>) {
    env.add_filter("_spent", limits::spent);
    env.add_filter("_flat", limits::flat);
    env.add_filter("_each", |value: Value, bytes: usize| limits::each(value, bytes));
    env.add_filter("_some", some);
}

/// What is sliced backwards: never empty (of none, every slice is the empty list).
fn some(value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some("") => Err(Error::new(ErrorKind::InvalidOperation, "an empty text cannot be sliced backwards")),
        Some(_) => Ok(value),
        None => limits::each(value, 0).map(|v| if v.len() == Some(0) { Value::from(()) } else { v }),
    }
}

/// `source` with its operators guarded.
pub(super) fn rewrite(file: &str, source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    let tree = parse(source, file, syntax.clone())?;
    let mut guard = Guard { source, edits: Vec::new(), refused: None };
    guard.stmt(&tree);
    if let Some(what) = guard.refused {
        let why = format!("{what} is not possible in a chat template");
        return Err(Error::new(ErrorKind::SyntaxError, why));
    }
    // Stable: at one place the outer parentheses open first and close last.
    guard.edits.sort_by_key(|(at, _)| *at);
    let mut out = String::with_capacity(source.len() + 16 * guard.edits.len());
    let mut done = 0;
    for (at, text) in &guard.edits {
        out.push_str(source.get(done..*at).unwrap_or_default());
        out.push_str(text);
        done = *at;
    }
    out.push_str(source.get(done..).unwrap_or_default());
    Ok(out)
}

struct Guard<'s> {
    source: &'s str,
    /// Texts to insert, and the byte offsets where.
    edits: Vec<(usize, String)>,
    /// A statement that needs other templates.
    refused: Option<&'static str>,
}

impl Guard<'_> {
    /// Wrap the bytes from `start` to `end` in `(( )|filter)`, their inside visited by `inside`.
    fn wrap(&mut self, (start, end): (usize, usize), filter: &str, inside: impl FnOnce(&mut Self)) {
        self.edits.push((start, "((".into()));
        inside(self);
        self.edits.push((end, format!(")|{filter})")));
    }

    /// Wrap `left operator right`, of which minijinja tells the whole extent, and the operands. The spans of operands
    /// leave out their parentheses, so the operator between them is looked for.
    fn operator(&mut self, span: Span, op: &ast::BinOp<'_>, sign: char, left: Option<&str>, right: &str) {
        let (start, end) = extent(span);
        let from = op.left.span().end_offset as usize;
        let gap = self.source.get(from..).unwrap_or_default();
        let skipped = gap.len() - gap.trim_start_matches(|c: char| c.is_whitespace() || c == ')').len();
        let at = from + skipped;
        if !gap[skipped..].starts_with(sign) {
            self.refused = Some("this way to write an operator");
            return;
        }
        self.wrap((start, end), "_spent", |g| {
            match left {
                Some(filter) => g.wrap((start, at), filter, |g| g.expr(&op.left)),
                None => g.expr(&op.left),
            }
            g.wrap((at + sign.len_utf8(), end), right, |g| g.expr(&op.right));
        });
    }

    /// Charge the literal text of a loop's body for every turn: `for x in items` -> `for x in ((items)|_each(n))`.
    fn each(&mut self, target: &ast::Expr<'_>, items: &ast::Expr<'_>, bytes: usize) {
        let after = |at: u32| {
            let rest = self.source.get(at as usize..).unwrap_or_default();
            let inner = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ')');
            (at as usize + rest.len() - inner.len(), inner)
        };
        let (start, keyword) = after(target.span().end_offset);
        let (end, _) = after(items.span().end_offset);
        if keyword.starts_with("in") {
            self.wrap((start + 2, end), &format!("_each({bytes})"), |g| g.expr(items));
        } else {
            self.refused = Some("this way to write a loop");
        }
    }

    /// The value of a slice. minijinja computes backward slices with bounds wrongly, and panics over some of them and over
    /// all of an empty value: `[::-1]` is given something that is not empty, others are refused.
    fn sliced(&mut self, expr: &ast::Expr<'_>, slice: &ast::Slice<'_>) {
        let small = |n: &i64| (-1_000_000_000..=1_000_000_000).contains(n);
        let step = slice.step.as_ref().map(|step| step.as_const().and_then(|v| i64::try_from(v).ok()).filter(small));
        match step {
            None | Some(Some(0..)) => self.expr(&slice.expr),
            Some(None) => self.refused = Some("a slice whose step is not a plain number"),
            Some(Some(_)) if slice.start.is_some() || slice.stop.is_some() => {
                self.refused = Some("a backward slice between bounds (only [::-1] and the like)");
            }
            Some(Some(_)) => {
                let from = slice.expr.span().end_offset as usize;
                let rest = self.source.get(from..).unwrap_or_default();
                let bracket = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ')');
                if bracket.starts_with('[') {
                    let at = from + rest.len() - bracket.len();
                    self.wrap((chain_start(expr), at), "_some", |g| g.expr(&slice.expr));
                } else {
                    self.refused = Some("this way to write a slice");
                }
            }
        }
    }

    fn body(&mut self, stmts: &[ast::Stmt<'_>]) {
        stmts.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &ast::Stmt<'_>) {
        use ast::Stmt;
        match stmt {
            Stmt::Template(t) => self.body(&t.children),
            Stmt::EmitExpr(e) => self.expr(&e.expr),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
            Stmt::ForLoop(f) => {
                self.each(&f.target, &f.iter, raw_bytes(&f.body));
                f.filter_expr.iter().for_each(|e| self.expr(e));
                self.body(&f.body);
                self.body(&f.else_body);
            }
            Stmt::IfCond(i) => {
                self.expr(&i.expr);
                self.body(&i.true_body);
                self.body(&i.false_body);
            }
            Stmt::WithBlock(w) => {
                w.assignments.iter().for_each(|(_, value)| self.expr(value));
                self.body(&w.body);
            }
            Stmt::Set(s) => self.expr(&s.expr),
            Stmt::SetBlock(s) => self.body(&s.body),
            Stmt::AutoEscape(a) => self.body(&a.body),
            Stmt::FilterBlock(f) => self.body(&f.body),
            Stmt::Macro(m) => {
                m.defaults.iter().for_each(|e| self.expr(e));
                self.body(&m.body);
            }
            Stmt::CallBlock(c) => {
                self.args(&c.call.args);
                self.body(&c.macro_decl.body);
            }
            Stmt::Do(d) => self.args(&d.call.args),
            Stmt::Block(_) => self.refused = Some("{% block %}"),
            Stmt::Include(_) => self.refused = Some("{% include %}"),
            Stmt::Import(_) | Stmt::FromImport(_) => self.refused = Some("{% import %}"),
            Stmt::Extends(_) => self.refused = Some("{% extends %}"),
        }
    }

    fn args(&mut self, args: &[ast::CallArg<'_>]) {
        for arg in args {
            let (ast::CallArg::Pos(e)
            | ast::CallArg::Kwarg(_, e)
            | ast::CallArg::PosSplat(e)
            | ast::CallArg::KwargSplat(e)) = arg;
            self.expr(e);
        }
    }

    fn expr(&mut self, expr: &ast::Expr<'_>) {
        use ast::{BinOpKind, Expr};
        let all = |g: &mut Self, exprs: &[&Option<ast::Expr<'_>>]| {
            exprs.iter().copied().flatten().for_each(|e| g.expr(e));
        };
        match expr {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::BinOp(op) => match op.op {
                BinOpKind::Concat => self.operator(expr.span(), op, '~', Some("_flat"), "_flat"),
                BinOpKind::Add => self.operator(expr.span(), op, '+', None, "_spent"),
                // The filter also keeps the compiler from folding `'x' * 100000000` into a constant.
                BinOpKind::Mul => self.operator(expr.span(), op, '*', None, "_spent"),
                _ => {
                    self.expr(&op.left);
                    self.expr(&op.right);
                }
            },
            Expr::Call(call) => self.wrap((chain_start(expr), extent(expr.span()).1), "_spent", |g| {
                g.expr(&call.expr);
                g.args(&call.args);
            }),
            Expr::Slice(s) => {
                self.sliced(expr, s);
                all(self, &[&s.start, &s.stop, &s.step]);
            }
            Expr::UnaryOp(u) => self.expr(&u.expr),
            Expr::Compare(c) => {
                self.expr(&c.expr);
                c.ops.iter().for_each(|op| self.expr(&op.expr));
            }
            Expr::IfExpr(i) => {
                self.expr(&i.true_expr);
                self.expr(&i.test_expr);
                all(self, &[&i.false_expr]);
            }
            Expr::Filter(f) => {
                all(self, &[&f.expr]);
                self.args(&f.args);
            }
            Expr::Test(t) => {
                self.expr(&t.expr);
                self.args(&t.args);
            }
            Expr::GetAttr(a) => self.expr(&a.expr),
            Expr::GetItem(i) => {
                self.expr(&i.expr);
                self.expr(&i.subscript_expr);
            }
            Expr::List(l) => l.items.iter().for_each(|e| self.expr(e)),
            Expr::Tuple(t) => t.items.iter().for_each(|e| self.expr(e)),
            Expr::Map(m) => m.keys.iter().zip(&m.values).for_each(|(k, v)| {
                self.expr(k);
                self.expr(v);
            }),
        }
    }
}

fn extent(span: Span) -> (usize, usize) {
    (span.start_offset as usize, span.end_offset as usize)
}

/// Where `a.b[c].d(e)` begins. Of such a chain only the innermost link has a span that starts there; the spans of the
/// others start further right.
fn chain_start(expr: &ast::Expr<'_>) -> usize {
    use ast::Expr;
    let mut start = extent(expr.span()).0;
    let mut link = expr;
    loop {
        link = match link {
            Expr::GetAttr(a) => &a.expr,
            Expr::GetItem(i) => &i.expr,
            Expr::Slice(s) => &s.expr,
            Expr::Call(c) => &c.expr,
            _ => return start,
        };
        start = start.min(extent(link.span()).0);
    }
}

/// Literal text that a loop's body can write in one go, inner loops (which are charged themselves) left out.
fn raw_bytes(stmts: &[ast::Stmt<'_>]) -> usize {
    use ast::Stmt;
    let of = |stmt: &Stmt<'_>| match stmt {
        Stmt::EmitRaw(raw) => raw.raw.len(),
        Stmt::IfCond(i) => raw_bytes(&i.true_body).max(raw_bytes(&i.false_body)),
        Stmt::WithBlock(w) => raw_bytes(&w.body),
        Stmt::SetBlock(s) => raw_bytes(&s.body),
        Stmt::FilterBlock(f) => raw_bytes(&f.body),
        Stmt::AutoEscape(a) => raw_bytes(&a.body),
        Stmt::CallBlock(c) => raw_bytes(&c.macro_decl.body),
        Stmt::ForLoop(f) => raw_bytes(&f.else_body),
        _ => 0,
    };
    stmts.iter().map(of).sum()
}
