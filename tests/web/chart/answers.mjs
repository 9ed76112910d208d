// Answers of the server for tests of the chart.

const DECAY = 0.98

/** What a server would answer that has seen these losses: one bucket a step. */
export function answered(losses) {
  let [value, weight] = [0, 0]
  const smooth = losses.map((loss) => {
    if (loss != null) [value, weight] = [DECAY * value + (1 - DECAY) * loss, DECAY * weight + (1 - DECAY)]
    return value / weight
  })
  const step = losses.map((_, index) => index + 1)
  const curve = { step, low: losses, high: losses, smooth, learning_rate: losses.map(() => 1e-4) }
  return { curve, ema: { value, weight }, ema_decay: DECAY }
}

/** So many losses that go up and down. */
export const waves = (count) => Array.from({ length: count }, (_, index) => 0.1 + 0.05 * Math.sin(index * 1.7))
