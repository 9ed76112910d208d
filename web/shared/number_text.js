// Numbers as text: pure, tested by tests/web/shared/number_text.test.mjs.

/** A loss or rate in few characters. */
export function compact(value) {
  if (!Number.isFinite(value)) return '-'
  if (value === 0) return '0'
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) {
    return value.toExponential(2).replace(/\.?0+e/, 'e').replace('e+', 'e')
  }
  return String(Number(value.toPrecision(4)))
}
