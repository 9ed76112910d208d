// The state of a run, or of the two of a pair, from the server's answers and later messages. Pure, tested by
// tests/web/training/run_state.test.mjs.
//
// Texts are {key, values} for t() of ../shared/messages.js.

import { measuredOf } from '../shared/measured.js'
import { append, epochOf, fromAnswer as curveOf } from '../chart/loss_series.js'

const text = (key, values = {}) => ({ key: `chart.${key}`, values })

/** The state after GET /wantune/runs/{run}; `expert` is 'high' or 'low' for a run of a pair. */
export function fromAnswer(answer, expert = '') {
  return {
    run: answer.run,
    name: answer.name,
    expert,
    isWaiting: answer.state === 'running' && Boolean(answer.is_waiting),
    state: answer.state,
    step: answer.step ?? 0,
    totalSteps: answer.total_steps ?? 0,
    stepsPerEpoch: answer.steps_per_epoch ?? 0,
    continuesFrom: answer.continues_from ?? null,
    best: answer.best ?? null,
    checkpoints: answer.checkpoints ?? [],
    heldOut: answer.held_out ?? [],
    previews: answer.previews ?? [],
    now: answer.now ?? null,
    faults: answer.faults ?? [],
    notes: answer.notes ?? [],
    isStopping: answer.state === 'running' && Boolean(answer.stopping),
    curve: curveOf(answer),
  }
}

const bySteps = (list, entry) =>
  [...list.filter(({ step }) => step !== entry.step), entry].sort((a, b) => a.step - b.step)

// by a message's name: [the next state, whether to request the run again]
const HEARD = {
  step(state, message) {
    const { curve, isGap } = append(state.curve, message.points ?? [])
    const now = { ...message }
    for (const name of ['points', 'workflow', 'node', 'run', 'step', 'total_steps', 'epoch']) delete now[name]
    return [{ ...running(state, message), curve, now }, isGap]
  },
  // only the run's folder tells what it did before, and whether it begins anew
  started: (state, message) => [running(state, message), true],
  evaluated(state, { step, loss, base_loss, learned = null, is_best }) {
    const best = is_best ? { step, loss } : state.best
    const measured = { step, loss, base_loss, learned, is_best }
    return [{ ...state, best, heldOut: bySteps(state.heldOut, measured) }, false]
  },
  // older checkpoints may have been deleted when this one was saved
  saved: (state, { step }) => [{ ...state, checkpoints: bySteps(state.checkpoints, { step, best: false }) }, true],
  previewed(state, { step, name, files, ...rest }) {
    return [{ ...state, previews: bySteps(state.previews, { step, name, files, ...measuredOf(rest) }) }, false]
  },
  // the server joins it to what is said of the run, in the page's language
  noted: (state) => [state, true],
  finished: (state, { step, reason }) => [{ ...state, step, state: reason, now: null, isStopping: false }, false],
  ended: (state) => [{ ...state, now: null, isStopping: false }, true],
}

function running(state, message) {
  return {
    ...state,
    state: 'running',
    isWaiting: false,
    continuesFrom: null,
    step: message.step,
    totalSteps: message.total_steps ?? state.totalSteps,
    stepsPerEpoch: message.steps_per_epoch ?? state.stepsPerEpoch,
  }
}

/** {state, ask}: the state after the message wantune.<name>, and whether to request the run again. */
export function heard(state, name, message) {
  if (!state || (message.run && message.run !== state.run)) return { state, ask: true }
  const [next, ask] = HEARD[name]?.(state, message) ?? [state, false]
  return { state: next, ask }
}

/** {states, ask}: heard() for the runs of a node; of a pair, one waits while the other one is computed. */
export function heardByAll(states, name, message) {
  const index = states.findIndex(({ run }) => run === message.run)
  if (index < 0) return { states, ask: true }
  const { state, ask } = heard(states[index], name, message)
  const isTurn = name === 'step' || name === 'started'
  const others = (each) => (isTurn && each.state === 'running' ? { ...each, isWaiting: true, now: null } : each)
  return { states: states.map((each, at) => (at === index ? state : others(each))), ask }
}

/** The run of a node that is computed, or else the one that is to be, or the first. */
export const presentOf = (states) =>
  states.find(({ state, isWaiting }) => state === 'running' && !isWaiting)
    ?? states.find(({ state }) => state === 'running') ?? states[0] ?? null

/** The name of an expert, null for a run that is alone. */
export const expertOf = ({ expert }) => (expert ? text(`${expert}_expert`) : null)

/** A text for seconds, in the two largest of days, hours, minutes and seconds; null for no duration. */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return null
  const whole = Math.round(seconds)
  if (whole < 60) return text('seconds', { seconds: whole })
  const minutes = Math.round(whole / 60)
  if (whole < 3600 && minutes < 60) return text('minutes', { minutes: Math.floor(whole / 60), seconds: whole % 60 })
  if (minutes < 24 * 60) return text('hours', { hours: Math.floor(minutes / 60), minutes: minutes % 60 })
  const hours = Math.round(whole / 3600)
  return text('days', { days: Math.floor(hours / 24), hours: hours % 24 })
}

const digits = (value) => (!Number.isFinite(value) ? null : value.toFixed(value < 0.1 ? 3 : value < 10 ? 2 : 1))

const gibibytes = (bytes) => (bytes / 2 ** 30).toFixed(1)

/** [{name, value}] beside the chart; value is {key, values}, a string, or null where it is not known. */
export function figures(state) {
  const now = state.now ?? {}
  const { memory_bytes: used, memory_total_bytes: total } = now
  const memory = used && total ? text('memory_of', { used: gibibytes(used), total: gibibytes(total) }) : null
  return [
    { name: text('eta'), value: duration(now.seconds_left) },
    { name: text('seconds_per_step'), value: digits(now.seconds_per_step) },
    { name: text('samples_per_second'), value: digits(now.samples_per_second) },
    { name: text('memory'), value: memory },
  ]
}

const NAMES = { 'early stop': 'early_stop' }
const KNOWN = ['running', 'done', 'stopped', 'early stop', 'interrupted', 'unreadable']

/** Whether it is running, stopping or how it ended, in a word or two. */
export function condition(state) {
  if (state.isStopping) return text('state_stopping')
  if (state.isWaiting) return text('state_waiting')
  return text(`state_${KNOWN.includes(state.state) ? NAMES[state.state] ?? state.state : 'interrupted'}`)
}

/** "step 120 of 300" and its epoch. */
export function position(state) {
  const { step, totalSteps, stepsPerEpoch } = state
  const epoch = epochOf(step, stepsPerEpoch)
  if (!epoch) return text('step_of', { step, total: totalSteps })
  const epochs = Math.max(epoch, Math.ceil(totalSteps / stepsPerEpoch))
  return text('step_and_epoch', { step, total: totalSteps, epoch, epochs })
}

/** How the run ended, and where the next Queue goes on; null while there is nothing to say. */
export function outcome(state) {
  const { state: kind, step, continuesFrom: from } = state
  if (kind === 'running' || kind === 'unreadable') return null
  if (kind === 'done') return text('was_done', { step })
  if (kind === 'early stop') return text('was_early_stop', { step })
  const name = kind === 'stopped' ? 'was_stopped' : 'was_interrupted'
  if (from === null) return text(name, { step })
  return text(from ? `${name}_continues` : `${name}_anew`, { step, from })
}

/** The previews in the order of stepping through them: the model without the LoRA, then by steps. */
export function inOrder(previews) {
  const rank = (preview) => (preview.name === 'base' ? -1 : preview.step)
  return [...previews].sort((a, b) => rank(a) - rank(b))
}

/** The strip of frames beside a video. */
export const stripOf = (file) => file.replace(/\.mp4$/, '.jpg')
