use super::*;

fn group<'a>(windows: &[Window<'a>]) -> Vec<Running<'a>> {
    let one = |(index, window): (usize, &Window<'a>)| Running { index, window: *window, done: 0, blocks: vec![0] };
    windows.iter().enumerate().map(one).collect()
}

#[test]
fn every_wanted_position_once_within_both_bounds() {
    let tokens: Vec<u32> = (0..37).collect();
    for (most_tokens, most_rows) in [(1, 1), (3, 2), (7, 100), (64, 5), (100, 100)] {
        let windows = [
            Window { tokens: &tokens, from: 30 },
            Window { tokens: &tokens[..9], from: 0 },
            Window { tokens: &tokens, from: 36 },
        ];
        let mut group = group(&windows);
        let mut seen: Vec<Vec<usize>> = vec![Vec::new(); 3];
        loop {
            let (step, parts) = next_step(&mut group, most_tokens, most_rows);
            if step.tokens.is_empty() {
                break;
            }
            assert!(step.tokens.len() <= most_tokens && step.outputs.len() <= most_rows);
            assert_eq!(parts.iter().map(|p| p.2).sum::<usize>(), step.outputs.len());
            // Rows of the step, mapped back to windows' positions.
            let mut outputs = step.outputs.iter();
            for (window, first, rows) in parts {
                for position in first..first + rows {
                    let Token::Id(token) = step.tokens[*outputs.next().unwrap() as usize] else { panic!() };
                    assert_eq!(token as usize, position);
                    seen[window].push(position);
                }
            }
        }
        assert_eq!(seen, [(30..37).collect::<Vec<_>>(), (0..9).collect(), vec![36]]);
    }
}

#[test]
fn log_probabilities_sum_to_one() {
    let logits = [1.0, -2.0, 0.5, 80.0, -1e30];
    let total: f64 = (0..5).map(|t| log_probability(&logits, t).exp()).sum();
    assert!((total - 1.0).abs() < 1e-12);
    assert_eq!(log_probability(&[0.0; 4], 2), -(4f64.ln()));
    assert_eq!(log_probability(&[0.0; 4], 4), f64::NEG_INFINITY);
}
