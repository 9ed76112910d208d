// One run in the list of runs.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { described as measured } from '../shared/measured.js'
import { compact } from '../shared/number_text.js'
import { described, offered } from './run_list.js'

/** `colour` is that of its curve, or null; `picture` an element; `act` {compare(), use(step), goOn(), remove()}. */
export function runItem(run, colour, picture, act) {
  return el('li', { class: 'wt-run', title: run.run }, picture, el('div', { class: 'wt-about' },
    el('div', { class: 'wt-row' },
      el('label', { class: 'wt-row' }, compareBox(run, colour, act), el('strong', {}, run.name)),
      el('span', { class: 'wt-state', 'data-state': run.state }, t(`runs.state_${run.state.replace(' ', '_')}`))),
    el('div', { class: 'wt-faint' }, new Date(run.updated * 1000).toLocaleString(), run.base && ` \u00b7 ${run.base}`),
    lineOf(described(run, compact)), run.preview && lineOf(measured(run.preview), t('chart.measured_help')),
    ...(run.faults ?? []).map((fault) => el('div', { class: 'wt-error' }, fault)), buttons(run, act)))
}

function lineOf(parts, title = null) {
  return parts.length > 0 && el('div', { class: 'wt-faint', title }, parts.map(([name, values]) => t(name, values)).join(' \u00b7 '))
}

function compareBox(run, colour, act) {
  const name = t('runs.compare', { name: run.name })
  return el('input', { type: 'checkbox', 'data-key': `compare ${run.run}`, checked: colour !== null, 'aria-label': name,
    title: name, style: colour !== null && `accent-color: ${colour}`, onchange: act.compare })
}

function buttons(run, act) {
  const step = offered(run)
  const isUnreadable = run.state === 'unreadable'
  const key = (name) => ({ type: 'button', 'data-key': `${name} ${run.run}` })
  return el('div', { class: 'wt-row' },
    el('button', { ...key('use'), disabled: step === null || isUnreadable, title: t('runs.use_help'), onclick: () => act.use(step) },
      t('runs.use')),
    el('button', { ...key('continue'), disabled: !run.has_workflow || isUnreadable, title: t('runs.continue_help'), onclick: act.goOn },
      t('runs.continue')),
    el('button', { ...key('delete'), disabled: run.state === 'running', onclick: act.remove }, t('runs.delete')))
}
