// SVG path data through points. Pure, tested by tests/web/chart/paths.test.mjs.

/** "M1 2L3 4" through the points; a value that is not finite breaks the line. */
export function line(steps, values, x, y) {
  let path = ''
  let isDown = false
  for (let index = 0; index < steps.length; index++) {
    if (!Number.isFinite(values[index])) isDown = false
    else {
      path += `${isDown ? 'L' : 'M'}${x(steps[index]).toFixed(1)} ${y(values[index]).toFixed(1)}`
      isDown = true
    }
  }
  return path
}

/** A closed band between two such lines, in as many pieces as gaps make. */
export function band(steps, low, high, x, y) {
  let path = ''
  for (let start = 0; start < steps.length; ) {
    let end = start
    while (end < steps.length && Number.isFinite(low[end]) && Number.isFinite(high[end])) end++
    if (end > start) {
      const there = line(steps.slice(start, end), high.slice(start, end), x, y)
      const back = line(steps.slice(start, end).reverse(), low.slice(start, end).reverse(), x, y)
      path += `${there}L${back.slice(1)}Z`
    }
    start = end + 1
  }
  return path
}
